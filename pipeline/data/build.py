"""The data stage: a checked folder in, data/dataset.jsonl with its split and its report out."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline import files
from pipeline.artifacts import Dataset
from pipeline.config import DataConfig
from pipeline.data import chat
from pipeline.data.augment import augment
from pipeline.data.check import Corpus, check_source, load_corpus
from pipeline.data.compose import (
    CATEGORY,
    Composed,
    choose,
    choose_families,
    compose,
    compose_family,
)
from pipeline.data.dataset import Conversation, Split, to_jsonl
from pipeline.data.exercises import Exercise, Prose, exercises
from pipeline.data.faults import errors
from pipeline.data.scenario import Scenario, render
from pipeline.data.settings import SETTINGS, Settings, load_settings
from pipeline.data.source import Source
from pipeline.data.split import split_of_scenario
from pipeline.data.stats import count
from pipeline.data.tools import VOCABULARY, find_calls
from pipeline.errors import DataError
from pipeline.progress import Stage

_SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def build(config: DataConfig, seed: int, out: Path, stage: Stage | None = None) -> Dataset:
    """Read, check, split, augment, compose and write. Equal inputs give equal bytes.

    Writes dataset.jsonl, split.json and report.json into `out`. Raises DataError listing every fault of the folder.
    """
    corpus = load_corpus(config.folder)
    settings = load_settings(settings_of(config.folder))
    conversations = [*_scenarios(corpus, config, settings, seed, stage)]
    for split in _SPLITS:
        conversations += _drills(corpus, config, settings, split, seed)
    conversations = sorted(
        _weighted(conversations, config), key=lambda one: (_SPLITS.index(one.split), one.kind, one.id)
    )
    _require_training_part(conversations, config.folder)
    dataset = out / "dataset.jsonl"
    files.write_text(dataset, to_jsonl(conversations))
    digest = files.sha256_file(dataset)
    files.write_json(out / "split.json", {one.id: one.split for one in conversations})
    report = out / "report.json"
    identity = {"digest": digest, "seed": seed} | {part_key(split): _digest(conversations, split) for split in _SPLITS}
    files.write_json(report, count(conversations, corpus.vocabulary) | identity)
    if stage:
        stage.update(1, 1, "corpus")
        for warning in corpus.warnings[:5]:
            stage.note(str(warning))
        shares = Counter(one.split for one in conversations)
        stage.summary = ", ".join(f"{shares[split]} {split}" for split in _SPLITS) + " conversations"
    return Dataset(dataset, report, digest)


def part_key(split: str) -> str:
    """Where report.json has the digest of a split's conversations."""
    return f"digest of {split}"


def _digest(conversations: list[Conversation], split: Split) -> str:
    return files.sha256_bytes(to_jsonl(one for one in conversations if one.split == split).encode())


def inputs_digest(config: DataConfig) -> str:
    """A digest of all that decides the data stage's output: the settings and every file of the data folder."""
    paths = [path for path in config.folder.rglob("*") if path.is_file() and path.suffix in (".md", ".yaml")]
    shared = {path.name: files.sha256_file(path) for path in (VOCABULARY, SETTINGS) if path.is_file()}
    settings = config.model_dump(mode="json", exclude={"folder"})
    return files.sha256_json(
        {"config": settings, "files": files.sha256_files(paths, config.folder), "shared": shared, "code": _code()}
    )


def settings_of(folder: Path) -> Path:
    """The folder's own settings.yaml where it has one, else the project's."""
    own = folder / "settings.yaml"
    return own if own.is_file() else SETTINGS


def _code() -> dict[str, str]:
    """Digests of this package's modules: changed code may give other data."""
    folder = Path(__file__).parent
    return files.sha256_files(folder.rglob("*.py"), folder)


def _scenarios(
    corpus: Corpus, config: DataConfig, settings: Settings, seed: int, stage: Stage | None
) -> list[Conversation]:
    found = []
    for index, scenario in enumerate(corpus.scenarios):
        split = split_of_scenario(scenario)
        found.append(_conversation(scenario, "scenario", split, config.folder))
        if split == "train":
            twins = augment(scenario, config, settings, corpus.vocabulary, seed, corpus.variants)
            found += [_conversation(twin, "augmented", split, config.folder) for twin in twins]
        if stage:
            stage.update(index + 1, len(corpus.scenarios), "scenarios")
    return found


def _drills(corpus: Corpus, config: DataConfig, settings: Settings, split: Split, seed: int) -> list[Conversation]:
    rng = random.Random(f"{seed}/drills/{split}")  # noqa: S311 - reproducible, not secret
    pool = exercises(corpus.drills, split)
    if split == "train":
        return _families(corpus, config, settings, pool, rng)
    found = []
    for index, group in enumerate(choose(pool, rng)):
        composed = compose(f"{split}-{index:05d}", group, settings, corpus.vocabulary, rng)
        found.append(_from_drills(composed, corpus, split, config.folder))
    return found


def _families(
    corpus: Corpus, config: DataConfig, settings: Settings, pool: Sequence[Exercise], rng: random.Random
) -> list[Conversation]:
    """The training part: many endings of few beginnings, so that a token trained is mostly one that teaches."""
    chains = [one for one in pool if one.drill.then]  # the rarest of choices, after a result: played twice
    groups = choose_families([*pool, *chains], config.drill_lines, config.drill_branches, rng)
    lenders = Prose.of(pool)
    borrowers = round(len(groups) * config.borrowed_prose) if lenders.for_one_hero.plain else 0
    found = []
    for index, group in enumerate(groups):
        name, prose = f"train-{index:05d}", lenders if index < borrowers else None
        family = compose_family(name, group, settings, corpus.vocabulary, rng, prose)
        found += [
            replace(_from_drills(one, corpus, "train", config.folder), group=name, call_only=prose is not None)
            for one in family
        ]
    return found


def _from_drills(composed: Composed, corpus: Corpus, split: Split, folder: Path) -> Conversation:
    _prove(composed.scenario, corpus)
    conversation = _conversation(composed.scenario, "drills", split, folder)
    if not composed.ends_on_call:
        return conversation
    return replace(conversation, messages=conversation.messages[:-2])


def _conversation(scenario: Scenario, kind: str, split: Split, folder: Path) -> Conversation:
    path = Path(scenario.path)
    inside = path.relative_to(folder) if path.is_relative_to(folder) else path
    return Conversation(
        id=scenario.id,
        source=f"{folder.name}/{inside.as_posix()}",
        line=scenario.line,
        category=scenario.category,
        kind=kind,  # type: ignore[arg-type]
        split=split,
        weight=1.0,
        messages=chat.messages_of(scenario),
    )


def _prove(scenario: Scenario, corpus: Corpus) -> None:
    """What is composed must satisfy the checker like everything that is written, save that it may be short."""
    faults = check_source(Source("composed/drills.md", render(scenario)), corpus.vocabulary).faults
    found = [fault for fault in errors(faults) if fault.code != "length"]
    if found:
        raise DataError(
            "a conversation composed from drills has faults:\n  " + "\n  ".join(map(str, found)),
            where=f"{scenario.path}:{scenario.line}",
            fix="mend the drills it is made of; they begin at that line",
        )


def _weighted(conversations: Sequence[Conversation], config: DataConfig) -> list[Conversation]:
    """Scenarios with rare calls and of small categories weigh a little more: the square root of how rare they are,
    within 0.5…2. Drills are dealt evenly over the calls, so each weighs one."""
    training = [one for one in conversations if one.split == "train"]
    categories = Counter(one.category for one in training)
    calls = Counter(name for one in training for name in _called(one))
    return [
        replace(one, weight=round(_weight(one, categories, calls) * config.scenario_weight, 4))
        if one.split == "train" and one.kind != "drills"
        else one
        for one in conversations
    ]


def _weight(one: Conversation, categories: Counter[str], calls: Counter[str]) -> float:
    rarities: list[float] = [calls.total() / len(calls) / calls[name] for name in _called(one)]
    others = {name: number for name, number in categories.items() if name != CATEGORY}
    rarities.append(sum(others.values()) / len(others) / categories[one.category])
    mean = sum(map(math.sqrt, rarities)) / len(rarities)
    return min(max(mean, 0.5), 2.0)


def _called(conversation: Conversation) -> list[str]:
    """The calls as classes: skills and abilities each, other tools as a whole."""
    return [
        f"{call.tool}: {call.arguments}" if call.arguments.replace(" ", "").isalpha() else call.tool
        for message in conversation.messages
        if message["role"] == "assistant"
        for call in find_calls(message["content"])
    ]


def _require_training_part(conversations: Sequence[Conversation], folder: Path) -> None:
    if not any(one.split == "train" for one in conversations):
        raise DataError(
            f"none of the {len(conversations)} conversations falls into the training part",
            where=str(folder),
            fix="add scenarios; 84 of 100 are trained on",
        )
