"""Who speaks after whom, where calls stand, and whether the vocabulary knows them."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from pipeline.data.faults import Faults, shown
from pipeline.data.scenario import Kind, Scenario, Turn
from pipeline.data.tools import Call, Matched, Vocabulary, find_calls

USER_TURNS = range(3, 7)
CONTEXT = 2048  # tokens on the phone
_CHARACTERS_PER_TOKEN = 3.5  # English prose in the bases' tokenisers: 3.9 to 4.6; numbers and names make more
_LONG_TURN = 1200  # characters
_BRACKET = re.compile(r"[\[\]]")


@dataclass(frozen=True, slots=True)
class Step:
    """A DM turn with a call the vocabulary knows, the TOOLCALL that answers it, and where both stand."""

    matched: Matched
    call: Call
    turn: Turn
    result: Turn | None
    index: int


def check_turns(scenario: Scenario, vocabulary: Vocabulary, faults: Faults) -> list[Step]:
    """Order, number and size of the turns, and every call's form. The steps are what later checks go through."""
    steps: list[Step] = []
    previous: Kind | None = None
    called = False
    for index, turn in enumerate(scenario.turns):
        _order(turn, previous, called, faults)
        if not turn.text:
            faults.add(turn.line, 1, "empty-turn", f"the {turn.kind.value} turn is empty")
        elif len(turn.text) > _LONG_TURN:
            faults.add(turn.line, 1, "long", f"the turn has {len(turn.text):,} characters; at most {_LONG_TURN:,}")
        calls = find_calls(turn.text)
        _brackets(turn, calls, faults)
        called = turn.kind is Kind.DM and bool(calls)
        if called and (matched := _call(turn, calls, vocabulary, faults)):
            after = scenario.turns[index + 1] if index + 1 < len(scenario.turns) else None
            result = after if after and after.kind is Kind.TOOLCALL else None
            steps.append(Step(matched, calls[-1], turn, result, index))
        previous = turn.kind
    _whole(scenario, called, faults)
    return steps


def _order(turn: Turn, previous: Kind | None, called: bool, faults: Faults) -> None:
    heading = max(turn.line - 1, 1)
    if called and turn.kind is not Kind.TOOLCALL:
        faults.add(heading, 1, "no-result", f"the call before this {turn.kind.value} turn has no TOOLCALL")
    elif turn.kind is Kind.TOOLCALL and not called:
        faults.add(heading, 1, "no-call", "this TOOLCALL follows no call")
    elif turn.kind is Kind.USER and previous not in (None, Kind.DM):
        faults.add(heading, 1, "turns", f"User follows {previous.value if previous else ''}")
    elif turn.kind is Kind.DM and previous in (None, Kind.DM):
        faults.add(heading, 1, "turns", "DM follows DM" if previous else "the conversation begins with the DM")


def _whole(scenario: Scenario, called: bool, faults: Faults) -> None:
    if not scenario.turns:
        return
    last = scenario.turns[-1]
    if called:
        faults.add(last.last_line, 1, "no-result", "the last call has no TOOLCALL")
    elif last.kind is not Kind.DM:
        faults.add(last.line, 1, "ending", f"the last turn is {last.kind.value}")
    users = sum(1 for _ in scenario.of(Kind.USER))
    if users not in USER_TURNS:
        faults.add(scenario.line, 1, "length", f"there {'is' if users == 1 else 'are'} {users} user turn(s)")
    size = (len(scenario.system()) + sum(len(turn.text) + 12 for turn in scenario.turns)) / _CHARACTERS_PER_TOKEN
    if size > CONTEXT:
        faults.add(scenario.line, 1, "long", f"the conversation makes about {size:,.0f} tokens")


def _brackets(turn: Turn, calls: list[Call], faults: Faults) -> None:
    if "[" not in turn.text and "]" not in turn.text:
        return
    inside = {offset for call in calls for offset in (call.start, call.end - 1)}
    for found in _BRACKET.finditer(turn.text):
        if found.start() not in inside:
            faults.add(
                *place(turn, found.start()), "bracket", f"there is a bracket in {shown(_line(turn, found.start()))}"
            )
    if turn.kind is not Kind.DM:
        for call in calls:
            faults.add(*place(turn, call.start), "speaker", f"{call} stands in a {turn.kind.value} turn")


def _call(turn: Turn, calls: list[Call], vocabulary: Vocabulary, faults: Faults) -> Matched | None:
    if len(calls) > 1:
        faults.add(*place(turn, calls[1].start), "calls", f"there are {len(calls)} calls in one turn")
    call = calls[-1]
    line, column = place(turn, call.start)
    if call.end != len(turn.text) or column != 1:
        faults.add(line, column, "call-place", f"{call} is not alone on the turn's last line")
    elif not turn.text[: call.start].strip():
        faults.add(
            line, column, "empty-turn", "the DM says nothing before the call", "add a sentence of prose above it"
        )
    written = turn.text[call.start : call.end]
    if written != str(call):
        faults.add(line, column, "call-form", f"the call is written {shown(written)}", f"write {call}")
    matched = vocabulary.match(call)
    if matched is None:
        explain_call(call, vocabulary, line, column, faults)
    return matched


def explain_call(call: Call, vocabulary: Vocabulary, line: int, column: int, faults: Faults) -> None:
    """Say why the vocabulary does not know a call, with the nearest that it does know."""
    tool = vocabulary.tool(call.tool)
    if tool is None:
        near = difflib.get_close_matches(call.tool, vocabulary.names, 1)
        hint = f"did you mean {near[0]}? The tools are: {', '.join(vocabulary.names)}" if near else None
        faults.add(line, column, "tool", f"there is no tool {shown(call.tool)}", hint)
        return
    choices = [choice for form in tool.forms for choice in vocabulary.expansions(form)]
    near = difflib.get_close_matches(call.arguments.lower(), choices, 1)
    forms = ", ".join(f"[{tool.name}: {form.call}]" for form in tool.forms)
    fix = f"did you mean [{tool.name}: {near[0]}]?" if near else f"write one of {forms}"
    faults.add(line, column, "argument", f"{tool.name} does not take {shown(call.arguments)}", fix)


def place(turn: Turn, offset: int) -> tuple[int, int]:
    """Line and column in the file of an offset in the turn's text."""
    return turn.line + turn.text.count("\n", 0, offset), offset - turn.text.rfind("\n", 0, offset)


def _line(turn: Turn, offset: int) -> str:
    start = turn.text.rfind("\n", 0, offset) + 1
    return turn.text[start:].split("\n", 1)[0]
