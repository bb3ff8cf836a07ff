"""What the command line does with data: check, convert, stats and diff. Functions that print and give exit codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline import files
from pipeline.data import chat
from pipeline.data.check import check_each, check_paths, vocabulary_of
from pipeline.data.compose import CATEGORY
from pipeline.data.dataset import Conversation, Message
from pipeline.data.dialect import convert
from pipeline.data.drills import Drill, DrillFile
from pipeline.data.faults import errors
from pipeline.data.formats import FORMATS, as_text
from pipeline.data.scenario import Scenario
from pipeline.data.source import discover
from pipeline.data.split import split_of_line, split_of_scenario
from pipeline.data.stats import chart, count, differences
from pipeline.errors import UsageError


def check_command(paths: Sequence[Path], output: str = "text") -> int:
    """Print every fault below the paths; 1 with errors, 0 without (warnings do not count)."""
    if output not in FORMATS:
        raise UsageError(f"there is no format {output!r}", where="--format", fix=f"use one of: {', '.join(FORMATS)}")
    faults = check_paths(paths)
    number = sum(1 for _ in discover(list(paths)))
    print(FORMATS[output](faults, number))
    return 1 if errors(faults) else 0


def convert_command(paths: Sequence[Path], write: bool = True) -> int:
    """Rewrite each file in canonical form (or print it, where `write` is off) and report what does not fit.

    1 where a file could not be read; it stays as it is.
    """
    vocabulary_of(paths)
    failed = False
    for entry in discover(list(paths)):
        converted = convert(entry.path)
        if converted.faults:
            print(as_text(converted.faults, 1))
        if converted.text is None:
            failed = True
        elif not write:
            print(converted.text, end="")
        elif converted.text.encode() != entry.path.read_bytes():
            files.write_text(entry.path, converted.text)
            print(f"{entry.name}: written in canonical form")
        else:
            print(f"{entry.name}: is canonical already")
    return 1 if failed else 0


def stats_command(paths: Sequence[Path], tokens: Callable[[str], int] | None = None) -> int:
    """Print how often each category, tool, skill and kind of turn occurs, and how many tokens (or words) that is."""
    vocabulary = vocabulary_of(paths)
    conversations: list[Conversation] = []
    for checked in check_each(paths, vocabulary):
        if checked.scenario:
            conversations.append(_of_scenario(checked.scenario))
        if checked.drills:
            conversations += _of_drills(checked.drills)
    print(chart(count(conversations, vocabulary, tokens)))
    return 0


def diff_command(old: Path, new: Path) -> int:
    """Print what changed between two runs' datasets. Each is a run's folder or a report.json."""
    lines = differences(_report(old), _report(new))
    print("\n".join(lines) if lines else "the datasets are the same")
    return 0


def _report(path: Path) -> dict[str, object]:
    report = path / "data" / "report.json" if path.is_dir() else path
    if not report.is_file():
        raise UsageError(f"there is no report {str(report)!r}", fix="give a run's folder that has a data stage")
    content: dict[str, object] = files.read_json(report)
    return content


def _of_scenario(scenario: Scenario) -> Conversation:
    return Conversation(
        id=scenario.id,
        source=scenario.path,
        line=scenario.line,
        category=scenario.category,
        kind="scenario",
        split=split_of_scenario(scenario),
        weight=1.0,
        messages=chat.messages_of(scenario),
    )


def _of_drills(file: DrillFile) -> list[Conversation]:
    return [_of_drill(file, drill) for section in file.sections for drill in section.drills]


def _of_drill(file: DrillFile, drill: Drill) -> Conversation:
    calls = "\n".join(map(str, (drill.call, *drill.then) if drill.call else ()))
    answer = f"{drill.dm.text}\n\n{calls}".rstrip()
    return Conversation(
        id=f"{file.id}:{drill.player.line}",
        source=file.path,
        line=drill.player.line,
        category=CATEGORY,
        kind="drills",
        split=split_of_line(drill.player.text),
        weight=1.0,
        messages=(
            Message(role="user", content=drill.player.text),
            Message(role="assistant", content=answer),
        ),
    )
