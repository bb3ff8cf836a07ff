"""The checker: every fault of every file in one run, and the corpus once it has none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.checks.corpus import Balance, Overlap, Text, scenario_words
from pipeline.data.checks.drills import check_drills
from pipeline.data.checks.policy import check_policy
from pipeline.data.checks.results import check_party, check_results
from pipeline.data.checks.text import check_text
from pipeline.data.checks.turns import Step, check_turns
from pipeline.data.drills import DrillFile, is_drills, parse_drills
from pipeline.data.faults import Fault, Faults, errors
from pipeline.data.paraphrases import Variant, check_paraphrases, is_paraphrases, parse_paraphrases
from pipeline.data.parse import parse_scenario
from pipeline.data.scenario import Scenario
from pipeline.data.source import Entry, Source, discover, read
from pipeline.data.split import normalised, split_of_line, split_of_scenario
from pipeline.data.tools import VOCABULARY, Vocabulary, load_vocabulary
from pipeline.errors import DataError

_LISTED = 50  # faults printed with a DataError; `data:check` prints them all


@dataclass(frozen=True, slots=True)
class Corpus:
    """A data folder without errors."""

    folder: Path
    vocabulary: Vocabulary
    scenarios: tuple[Scenario, ...]
    drills: tuple[DrillFile, ...]
    variants: tuple[Variant, ...]
    warnings: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """One file: what it holds, as far as it could be read, and its faults."""

    scenario: Scenario | None
    drills: DrillFile | None
    steps: list[Step]
    faults: list[Fault]
    variants: tuple[Variant, ...] = ()


def check_source(source: Source, vocabulary: Vocabulary, faults: Faults | None = None) -> Checked:
    """Check one file's text by itself."""
    faults = faults or Faults(source.path)
    check_text(source, faults)
    if is_drills(source):
        drills = parse_drills(source, faults)
        check_drills(drills, vocabulary, faults)
        return Checked(None, drills, [], faults.found)
    if is_paraphrases(source):
        return Checked(None, None, [], faults.found, parse_paraphrases(source, faults))
    scenario = parse_scenario(source, faults)
    if scenario is None:
        return Checked(None, None, [], faults.found)
    check_party(scenario, faults)
    steps = check_turns(scenario, vocabulary, faults)
    check_results(scenario, steps, vocabulary, faults)
    check_policy(scenario, steps, vocabulary, faults)
    return Checked(scenario, None, steps, faults.found)


def check_each(paths: Sequence[Path], vocabulary: Vocabulary | None = None) -> Iterator[Checked]:
    """Check file after file, each by itself; only one is in memory at a time."""
    for entry in discover(list(paths)):
        yield _check_entry(entry, vocabulary or vocabulary_of(paths))


def check_paths(paths: Sequence[Path], vocabulary: Vocabulary | None = None) -> list[Fault]:
    """Every fault below the paths, each file's and those between files, sorted by file and line.

    Raises DataError where a path does not exist or tools.yaml is broken.
    """
    known = vocabulary or vocabulary_of(paths)
    overlap, balance = Overlap(lambda path: reread(path, known)), Balance()
    faults: list[Fault] = []
    for checked in check_each(paths, known):
        faults += checked.faults
        _note(checked, overlap, balance)
    faults += overlap.faults()
    faults += balance.faults(str(paths[0]))
    return sorted(faults)


def load_corpus(folder: Path) -> Corpus:
    """Read a whole data folder. Raises DataError with every fault where there are errors, or where it is empty."""
    vocabulary = vocabulary_of([folder])
    overlap, balance = Overlap(lambda path: reread(path, vocabulary)), Balance()
    scenarios, drills, faults = [], [], []
    variants: list[Variant] = []
    for checked in check_each([folder], vocabulary):
        faults += checked.faults
        _note(checked, overlap, balance)
        if checked.scenario:
            scenarios.append(checked.scenario)
        if checked.drills:
            drills.append(checked.drills)
        variants += checked.variants
    faults = sorted([*faults, *overlap.faults(), *balance.faults(str(folder))])
    if errors(faults):
        raise _refuse(errors(faults), folder)
    if not scenarios and not any(section.drills for file in drills for section in file.sections):
        raise DataError(
            "there is no training data: not one scenario and not one drill",
            where=str(folder),
            fix=f"put markdown scenarios into {folder}/<category>/ (see training_data/README.md)",
        )
    return Corpus(folder, vocabulary, tuple(scenarios), tuple(drills), tuple(variants), tuple(faults))


def vocabulary_of(paths: Sequence[Path]) -> Vocabulary:
    """The folder's own tools.yaml where it has one, else the project's."""
    missing = [str(path) for path in paths if not path.exists() and not path.is_symlink()]
    if missing or not paths:
        raise DataError(
            f"there is no {', '.join(missing) or 'path to check'}",
            fix="give files or folders that exist, such as training_data",
        )
    own = paths[0] / "tools.yaml"
    return load_vocabulary(own if own.is_file() else VOCABULARY)


def require_common_vocabulary(folder: Path) -> None:
    """A folder that is trained on may have a tools.yaml of its own only where it says what the project's says: training,
    measuring, grammar and dm-tools.js know that one alone. Raises DataError."""
    own = folder / "tools.yaml"
    if not own.is_file() or own.resolve() == VOCABULARY.resolve():
        return
    ours, theirs = load_vocabulary(own).model_dump(), load_vocabulary().model_dump()
    if ours == theirs:
        return
    listed = [{tool["name"]: tool for tool in side["tools"]} for side in (ours, theirs)]
    names = sorted(name for name in {*listed[0], *listed[1]} if listed[0].get(name) != listed[1].get(name))
    raise DataError(
        f"this folder's tools.yaml has another vocabulary than the project's: {', '.join(names) or 'other slots'}",
        where=str(own),
        fix=f"put what is new into {VOCABULARY.parent.name}/{VOCABULARY.name}, which the whole pipeline reads, and remove this file",
    )


def reread(path: str, vocabulary: Vocabulary) -> Iterator[Text]:
    """The comparable texts of a file that was checked before."""
    file = Path(path)
    checked = _check_entry(Entry(file, path, file.parent), vocabulary)
    if checked.scenario:
        scenario = checked.scenario
        yield Text(path, scenario.line, scenario_words(scenario), split_of_scenario(scenario))
    for section in checked.drills.sections if checked.drills else ():
        for drill in section.drills:
            text = drill.player.text
            yield Text(path, drill.player.line, tuple(normalised(text).split()), split_of_line(text))


def _check_entry(entry: Entry, vocabulary: Vocabulary) -> Checked:
    faults = Faults(entry.name)
    if entry.path.parent == entry.root and entry.root.is_dir() and (entry.root / "tools.yaml").is_file():
        faults.add(1, 1, "place", "the file lies in the data folder itself")
    source = read(entry, faults)
    checked = check_source(source, vocabulary, faults) if source else Checked(None, None, [], faults.found)
    if not checked.variants:
        return checked
    folder = entry.path.parent.parent

    def scenario_of(name: str) -> Scenario | None:
        path = folder / f"{name}.md"
        found = _check_entry(Entry(path, str(path), folder), vocabulary) if path.is_file() else None
        return found.scenario if found else None

    def faults_of(text: Source) -> list[Fault]:
        return check_source(text, vocabulary).faults

    return replace(checked, variants=check_paraphrases(checked.variants, scenario_of, faults_of, faults))


def _note(checked: Checked, overlap: Overlap, balance: Balance) -> None:
    if checked.scenario:
        overlap.add_scenario(checked.scenario)
        balance.add(checked.scenario, checked.steps)
    if checked.drills:
        overlap.add_drills(checked.drills)
    for variant in checked.variants:
        overlap.add_line(variant.line.text, variant.path, variant.line.line, variant.split)


def _refuse(faults: list[Fault], folder: Path) -> DataError:
    lines = [str(fault) for fault in faults[:_LISTED]]
    if len(faults) > _LISTED:
        lines.append(f"… and {len(faults) - _LISTED} more")
    count = f"{len(faults)} faults" if len(faults) > 1 else "a fault"
    return DataError(
        f"the training data has {count}:\n  " + "\n  ".join(lines),
        where=str(folder),
        fix="mend them; `pnpm run data:check` lists them all",
    )
