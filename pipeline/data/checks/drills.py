"""Drill files: every line's call, its placeholders, and the outcomes its section needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from pipeline.data.checks.policy import check_cues, check_said
from pipeline.data.checks.turns import explain_call
from pipeline.data.drills import ALLY, HERO, TOTAL, Drill, DrillFile, DrillSection, Line
from pipeline.data.faults import Faults, shown
from pipeline.data.tools import Matched, Vocabulary, find_calls

_BRACES = re.compile(r"\{[^{}\n]*\}?|\}")
_PLACES = (HERO, ALLY)
_LONG = 600  # characters


def check_drills(file: DrillFile, vocabulary: Vocabulary, faults: Faults) -> None:
    for section in file.sections:
        if not section.drills:
            faults.add(section.line, 1, "drill-section", f"{shown('## ' + section.title)} has no lines")
        matched = [drill_call(drill, section, vocabulary, faults) for drill in section.drills]
        matched += [match for drill in section.drills for match in _then(drill, vocabulary, faults)]
        _outcomes(section, [match for match in matched if match], faults)
        for drill in section.drills:
            _texts(drill, faults)


def drill_call(drill: Drill, section: DrillSection, vocabulary: Vocabulary, faults: Faults) -> Matched | None:
    """The form of a drill's call; None without one, or with one that is a fault."""
    if drill.call is None:
        return None
    matched = vocabulary.match(drill.call)
    if matched is None:
        explain_call(drill.call, vocabulary, drill.call_line, 1, faults)
        return None
    topic = section.title.strip("[]")
    if not find_calls(section.title) and topic not in (matched.tool.name, matched.form.name):
        faults.add(drill.call_line, 1, "drill-call", f"{drill.call} stands below {shown('## ' + section.title)}")
    _names(matched, drill, drill.player.text, vocabulary, faults)
    check_cues(drill.player.text, str(drill.call)[1:-1], drill.player.line, faults)
    check_said(matched.values, drill.player.text, drill.player.text, vocabulary, drill.call_line, faults)
    return matched


def _then(drill: Drill, vocabulary: Vocabulary, faults: Faults) -> Iterator[Matched]:
    """The forms of the calls that follow, which the player's line or the DM's has announced. {total} stands for a
    number: that of the dice just before."""
    before, announced = drill.call, f"{drill.player.text}\n{drill.dm.text}"
    for call in drill.then:
        counts = TOTAL in call.arguments
        matched = vocabulary.match(replace(call, arguments=call.arguments.replace(TOTAL, "1")))
        if counts and not (before and (dice := vocabulary.match(before)) and dice.form.name == "dice"):
            faults.add(
                drill.call_line, 1, "placeholder", f"{call} does not follow dice", f"say the number, not {TOTAL}"
            )
        elif matched is None:
            explain_call(call, vocabulary, drill.call_line, 1, faults)
        else:
            _names(matched, drill, announced, vocabulary, faults)
            said = {name: value for name, value in matched.values.items() if not (counts and value == "1")}
            check_said(said, announced, announced, vocabulary, drill.call_line, faults)
            yield matched
        before = call


def _names(matched: Matched, drill: Drill, said: str, vocabulary: Vocabulary, faults: Faults) -> None:
    for name, value in matched.values.items():
        slot = vocabulary.slots[name]
        if slot.kind == "party" and value not in (*_PLACES, *slot.values):
            faults.add(drill.call_line, 1, "name", f"{shown(value)} is nobody in a drill",
                       f"use {{hero}}, {{ally}} or {', '.join(slot.values)}")  # fmt: skip
        elif slot.kind == "party" and value in _PLACES and value not in said:
            faults.add(drill.call_line, 1, "whose", f"no line before the call names {value}")


def _outcomes(section: DrillSection, matched: list[Matched], faults: Faults) -> None:
    wanted = {name for match in matched for name in _wanted(match)}
    for name in sorted(wanted - {name for name, lines in section.outcomes.items() if lines}):
        faults.add(section.line, 1, "outcomes", f"{shown('## ' + section.title)} has no ### {name}", f"add ### {name}")
    if not wanted and section.outcomes:
        faults.add(section.line, 1, "outcomes", f"{shown('## ' + section.title)} needs no outcomes", "remove them")
    for lines in section.outcomes.values():
        for line in lines:
            _text(line, faults)


def _wanted(matched: Matched) -> tuple[str, ...]:
    return ("Success", "Failure") if matched.form.outcome == "check" else ("Outcome",)


def _texts(drill: Drill, faults: Faults) -> None:
    _text(drill.player, faults)
    _text(drill.dm, faults)


def _text(line: Line, faults: Faults) -> None:
    if not line.text:
        faults.add(line.line, line.column, "drill", "the bullet is empty")
    if len(line.text) > _LONG:
        faults.add(line.line, line.column, "long", f"the line has {len(line.text):,} characters; at most {_LONG}")
    for found in _BRACES.finditer(line.text):
        if found[0] not in _PLACES:
            faults.add(line.line, line.column + found.start(), "placeholder", f"{shown(found[0])} is no placeholder")
    for mark in "[]":
        if mark in line.text:
            faults.add(
                line.line, line.column + line.text.index(mark), "bracket", f"there is a bracket in {shown(line.text)}"
            )
