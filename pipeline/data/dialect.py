"""Scenarios in the app's other dialects, read into the same typed form and written as canonical files.

Nothing is dropped silently: what the canonical format or the vocabulary has no place for is reported at its line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from markdown_it import MarkdownIt

from pipeline.data.drills import is_drills
from pipeline.data.faults import Fault, Faults, errors, shown
from pipeline.data.parse import parse_scenario
from pipeline.data.scenario import Kind, Scenario, Turn, render
from pipeline.data.sheets import plain, read_system
from pipeline.data.source import Entry, Source, read
from pipeline.data.tools import Call, Vocabulary, compile_template, find_calls, load_vocabulary

_MARKDOWN = MarkdownIt("zero").enable(["heading", "hr", "blockquote"])
_MARKDOWN.core.ruler.enableOnly(["normalize", "block"])
_KINDS = {"USER": Kind.USER, "DM": Kind.DM, "TOOLCALL": Kind.TOOLCALL}
_SYSTEM_PARTS = frozenset({"PLAYER", "PARTY"})
_QUOTE = re.compile(r"^(?: {0,3}> ?)+")
_HEADING = re.compile(r"^ {0,3}#{1,6}(?=\s|$)\s*")
_COMMAND = re.compile(r"\[([^\[\]\n]*)\]")
_BRACKETS = str.maketrans("[]", "()")
_ROLLED = re.compile(
    r"(?P<skill>[a-z ]+): (?:\S.*? )?rolls? 1d20 ?[+-] ?[0-9]+ = (?P<die>[0-9]+) ?\+ ?(?P<plus>-?[0-9]+) = "
    r"\*?(?P<total>-?[0-9]+)\*?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Converted:
    """A file in canonical form, or None with the reason; `faults` also say what did not fit."""

    text: str | None
    scenario: Scenario | None
    faults: list[Fault]


@dataclass(slots=True)
class _Part:
    """A heading and the numbered lines below it."""

    level: int
    title: str
    line: int
    lines: list[tuple[int, str]]


def convert(path: Path, vocabulary: Vocabulary | None = None) -> Converted:
    """The file in canonical form. Canonical files and drills come back as they are (blank lines aside)."""
    faults = Faults(str(path))
    source = read(Entry(path, str(path), path.parent), faults)
    if source is None:
        return Converted(None, None, faults.found)
    if is_drills(source):
        return Converted(source.text, None, faults.found)
    return convert_source(source, vocabulary or load_vocabulary())


def convert_source(source: Source, vocabulary: Vocabulary) -> Converted:
    strict = Faults(source.path)
    scenario = parse_scenario(source, strict)
    if scenario and not strict.found:
        return Converted(render(scenario), scenario, [])
    faults = Faults(source.path)
    scenario = read_dialect(source, faults, vocabulary)
    if scenario is None or errors(faults.found):
        return Converted(None, scenario, faults.found)
    text = render(scenario)
    again = Faults(source.path)
    parse_scenario(Source(source.path, text), again)
    return Converted(None if again.found else text, scenario, [*faults.found, *again.found])


def read_dialect(source: Source, faults: Faults, vocabulary: Vocabulary) -> Scenario | None:
    """Any dialect as a Scenario. None where there is no SYSTEM heading."""
    parts = _parts(source, faults)
    start = next((index for index, part in enumerate(parts) if part.title.upper() == "SYSTEM"), None)
    if start is None:
        faults.add(1, 1, "system", "there is no # SYSTEM section")
        return None
    end = start + 1
    while end < len(parts) and not _begins_conversation(parts[end]):
        end += 1
    for part in parts[:start]:
        faults.add(part.line, 1, "order", "there is text above # SYSTEM")
    last = parts[end].line - 1 if end < len(parts) else len(source.lines)
    system = read_system(source.lines[parts[start].line : last], parts[start].line + 1, faults)
    for key in ("role", "world", "location"):
        if not system.fields.get(key):
            faults.add(parts[start].line, 1, "system", f"the SYSTEM block has no {key.capitalize()}")
    if not system.party:
        faults.add(parts[start].line, 1, "party", "the party is empty")
    path = PurePath(source.path)
    return Scenario(
        id=f"{path.parent.name}/{path.stem}",
        path=source.path,
        category=path.parent.name,
        role=system.fields.get("role", ""),
        world=system.fields.get("world", ""),
        location=system.fields.get("location", ""),
        party=tuple(system.party),
        turns=tuple(_turns(parts[end:], system.player, vocabulary, faults)),
        line=parts[start].line,
    )


def _begins_conversation(part: _Part) -> bool:
    title = part.title.upper()
    return title in _KINDS or title == "CONVERSATION" or (part.level == 1 and title not in _SYSTEM_PARTS)


def _parts(source: Source, faults: Faults) -> list[_Part]:
    """The file cut at its headings. Rules and the marks of quotes are taken out, and reported."""
    lines = source.lines
    tokens = _MARKDOWN.parse(source.text)
    parts: list[_Part] = [_Part(0, "", 1, [])]
    headings = {
        token.map[0]: (int(token.tag[1:]), plain(tokens[index + 1].content))
        for index, token in enumerate(tokens)
        if token.type == "heading_open" and token.map and token.level == 0
    }
    rules = {token.map[0] for token in tokens if token.type == "hr" and token.map}
    quotes = {at for token in tokens if token.type == "blockquote_open" and token.map for at in range(*token.map)}
    for at, line in enumerate(lines):
        if at in headings:
            parts.append(_Part(*headings[at], at + 1, []))
        elif at in rules:
            faults.add(at + 1, 1, "dialect", "there is a horizontal rule, which is left out")
        else:
            if at in quotes and at - 1 not in quotes:
                faults.add(at + 1, 1, "dialect", "there is a block quote, which becomes plain text")
            parts[-1].lines.append((at + 1, _HEADING.sub("", _QUOTE.sub("", line) if at in quotes else line)))
    return parts if any(line.strip() for _, line in parts[0].lines) else parts[1:]


def _turns(parts: list[_Part], player: str, vocabulary: Vocabulary, faults: Faults) -> list[Turn]:
    """Sections as turns: NPCs speak through the DM, a section named like the player is the player's."""
    grouped: list[tuple[Kind, int, list[tuple[int, str]]]] = []
    for part in parts:
        if part.title.upper() == "CONVERSATION":
            if any(line.strip() for _, line in part.lines):
                faults.add(part.line, 1, "order", "there is text between # CONVERSATION and the first turn")
            continue
        kind, lines = _speech(part, player, grouped[-1][0] if grouped else None, faults)
        if grouped and grouped[-1][0] is kind:
            grouped[-1][2].extend([(part.line, ""), *lines])
        else:
            grouped.append((kind, part.line, lines))
    return [_turn(kind, line, lines, vocabulary, faults) for kind, line, lines in grouped]


def _speech(part: _Part, player: str, previous: Kind | None, faults: Faults) -> tuple[Kind, list[tuple[int, str]]]:
    title = part.title.upper()
    if title in _KINDS:
        return _KINDS[title], part.lines
    if player and title == player.upper():
        faults.add(part.line, 1, "dialect", f"the section of {part.title}, who is the player, becomes a User turn")
        return Kind.USER, part.lines
    if part.level > 1 and previous:
        faults.add(
            part.line, 1, "dialect", f"the heading {shown(part.title)} becomes a line of the {previous.value} turn"
        )
        return previous, [(part.line, part.title), *part.lines]
    faults.add(part.line, 1, "dialect", f"the section of {shown(part.title)} becomes words of the DM")
    return Kind.DM, [(part.line, f"{part.title}:"), *part.lines]


def _turn(kind: Kind, line: int, lines: list[tuple[int, str]], vocabulary: Vocabulary, faults: Faults) -> Turn:
    written: list[str] = []
    call: Call | None = None
    strange: list[tuple[int, str]] = []
    for number, text in lines:
        text, found = _commands(text.rstrip(), number, kind is Kind.DM and call is None, vocabulary, faults)
        call = call or found
        if kind is Kind.TOOLCALL and text:
            text = _result(text, number, vocabulary, strange, faults)
        if text or (written and written[-1]):
            written.append(_HEADING.sub("", text))
    if strange:
        what = f"the result {shown(strange[0][1])}" + (f" and {len(strange) - 1} lines below it" if strange[1:] else "")
        faults.add(strange[0][0], 1, "outside", f"{what} have no form of the vocabulary, and stay as they are")
    body = "\n".join(written).strip()
    if call:
        body = f"{body}\n\n{call}" if body else str(call)
    return Turn(kind, body, next((number for number, text in lines if text.strip()), line))


def _commands(text: str, line: int, may_call: bool, vocabulary: Vocabulary, faults: Faults) -> tuple[str, Call | None]:
    """The line without its first call, if it may have one; whatever else stands in brackets becomes plain text."""
    kept: Call | None = None
    for found in _COMMAND.finditer(text):
        calls = find_calls(found[0])
        known = bool(calls) and vocabulary.match(calls[0]) is not None
        if known and may_call and kept is None:
            kept = calls[0]
            if found[0] != text.strip():
                faults.add(line, found.start() + 1, "dialect", f"{kept} moves to the turn's last line")
        elif known:
            faults.add(line, found.start() + 1, "dialect", f"{calls[0]} is one call too many, and becomes plain text")
        else:
            faults.add(line, found.start() + 1, "outside", f"{shown(found[0])} is not in the vocabulary")
    if kept:
        first = next(found for found in _COMMAND.finditer(text) if find_calls(found[0])[:1] == [kept])
        text = (text[: first.start()].rstrip() + " " + text[first.end() :].lstrip()).strip()
    return text.translate(_BRACKETS), kept


def _result(text: str, line: int, vocabulary: Vocabulary, strange: list[tuple[int, str]], faults: Faults) -> str:
    """`persuasion: Elena rolls 1d20+7 = 12+7 = 19` in the vocabulary's form; whatever has no form goes to `strange`."""
    rolled = _ROLLED.fullmatch(text.strip())
    if rolled:
        skill = rolled["skill"].strip().lower()
        faults.add(line, 1, "dialect", f"{shown(text)} becomes the canonical form; who rolled is left out")
        return f"{skill}: {rolled['die']} + {rolled['plus']}(skill) = *{rolled['total']}*"
    forms = (form for tool in vocabulary.tools for form in tool.forms)
    if not any(compile_template(form.result, vocabulary).fullmatch(text) for form in forms):
        strange.append((line, text))
    return text
