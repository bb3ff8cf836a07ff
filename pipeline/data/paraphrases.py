"""Paraphrase files: a scenario's player lines in other words, for augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePath

from pipeline.data.dataset import Split
from pipeline.data.drills import Line, blocks
from pipeline.data.faults import Fault, Faults, shown
from pipeline.data.scenario import Kind, Scenario, render
from pipeline.data.source import Source
from pipeline.data.split import normalised, split_of_scenario

FOLDER = "paraphrases"


@dataclass(frozen=True, slots=True)
class Variant:
    """A player's line of a scenario (by its id, as it stands there) in other words. `path` is the paraphrases' file."""

    path: str
    scenario: str
    original: str
    line: Line
    split: Split = "train"


def is_paraphrases(source: Source) -> bool:
    return PurePath(source.path).parent.name == FOLDER or source.text.lstrip().startswith("# PARAPHRASES")


def parse_paraphrases(source: Source, faults: Faults) -> tuple[Variant, ...]:
    """Every variant of the file; whatever has another form is a fault at its line and left out."""
    found: list[Variant] = []
    parts = blocks(source, faults)
    if not parts or (parts[0].level, parts[0].title) != (1, "PARAPHRASES"):
        faults.add(1, 1, "paraphrase", "the file does not begin with # PARAPHRASES")
    for block in parts:
        if (block.level, block.title) != (1, "PARAPHRASES") and block.level != 2:
            faults.add(block.line, 1, "heading", f"{shown('#' * block.level + ' ' + block.title)} has no place here",
                       "use ## for a scenario's category/name")  # fmt: skip
        for item in block.items:
            if not item.below or any(one.below or not one.text for one in item.below):
                faults.add(item.line, item.column, "paraphrase", f"{shown(item.text)} has no other words below it")
            found += [
                Variant(source.path, block.title, item.text, Line(one.text, one.line, one.column)) for one in item.below
            ]
    return tuple(found)


def check_paraphrases(
    variants: tuple[Variant, ...],
    scenario_of: Callable[[str], Scenario | None],
    check: Callable[[Source], list[Fault]],
    faults: Faults,
) -> tuple[Variant, ...]:
    """The variants whose line is a player's in a scenario that can be read, with that scenario's split. In its place
    each must be as sound as the line it stands for: the same call is due, and its arguments are still said."""
    sound: list[Variant] = []
    name, scenario, before = "", None, set[str]()
    for variant in variants:
        if variant.scenario != name:
            name, scenario = variant.scenario, scenario_of(variant.scenario)
            before = {fault.what for fault in check(Source(scenario.path, render(scenario)))} if scenario else set()
        place = variant.line.line, variant.line.column
        if scenario is None:
            faults.add(
                *place, "paraphrase", f"there is no scenario {shown(name)}", "write its category/name as heading"
            )
            continue
        spoken = rephrase(scenario, {variant.original: variant.line.text})
        if spoken == scenario:
            faults.add(*place, "paraphrase", f"{name} has no player's line {shown(variant.original)}")
        elif normalised(variant.line.text) == normalised(variant.original):
            faults.add(*place, "paraphrase", f"{shown(variant.line.text)} says nothing in other words")
        else:
            for fault in check(Source(scenario.path, render(spoken))):
                if fault.what not in before:
                    faults.add(*place, "paraphrase", f"in {name}: {fault.what}", fault.fix)
            sound.append(replace(variant, split=split_of_scenario(scenario)))
    return tuple(sound)


def rephrase(scenario: Scenario, words: dict[str, str]) -> Scenario:
    """The scenario with player's lines replaced."""
    return replace(
        scenario,
        turns=tuple(
            replace(turn, text=words.get(" ".join(turn.text.split()), turn.text)) if turn.kind is Kind.USER else turn
            for turn in scenario.turns
        ),
    )
