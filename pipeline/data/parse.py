"""The canonical format, read strictly: markdown-it finds the sections, what deviates is a fault at its line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath

from markdown_it import MarkdownIt

from pipeline.data.faults import Faults, shown
from pipeline.data.scenario import Kind, PartyMember, Scenario, Turn
from pipeline.data.source import Source

_MARKDOWN = MarkdownIt("zero").enable("heading")
_MARKDOWN.core.ruler.enableOnly(["normalize", "block"])
_KINDS = {kind.value: kind for kind in Kind}
_FIELDS = ("Role", "World", "Location", "Party")
_MEMBER = re.compile(
    r"- (?P<name>[^()\[\],:]*[^()\[\],:\s]) \((?P<race>[^(),]*[^(),\s]) (?P<class>[^\s(),]+), "
    r"Level (?P<level>[0-9]{1,9}), HP: (?P<now>[0-9]{1,9})/(?P<most>[0-9]{1,9})\)"
)


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and the lines below it; `line` is the heading's, `body` starts on the line after."""

    level: int
    title: str
    line: int
    body: tuple[str, ...]

    def trimmed(self) -> tuple[int, str]:
        """Line number and text of the body without the blank lines around it and the blanks at line ends."""
        lines = [line.rstrip() for line in self.body]
        first = next((index for index, line in enumerate(lines) if line), None)
        if first is None:
            return self.line, ""
        return self.line + 1 + first, "\n".join(lines[first:]).rstrip("\n")


def sections(source: Source) -> list[Section]:
    """The file cut at its headings, in order; text above the first heading is a section of level 0."""
    lines = source.lines
    starts = _headings(lines)
    ends = [*(start for start, _, _ in starts[1:]), len(lines)][: len(starts)]
    found = [
        Section(level, title, start + 1, tuple(lines[start + 1 : end]))
        for (start, level, title), end in zip(starts, ends, strict=True)
    ]
    preamble = lines[: starts[0][0]] if starts else lines
    return [Section(0, "", 0, tuple(preamble)), *found] if any(line.strip() for line in preamble) else found


def _headings(lines: list[str]) -> list[tuple[int, int, str]]:
    """(index, level, title) of each heading. With headings as its only blocks, whether a line is one does not hang on
    its neighbours: the parser is given each line alone that begins with #, which more than three blanks forbid."""
    suspects = (
        (index, line) for index, line in enumerate(lines) if "#" in line[:4] and line.lstrip(" ").startswith("#")
    )
    return [(index, *heading) for index, line in suspects if (heading := _heading(line))]


@lru_cache(maxsize=64)  # a corpus has five or six of them
def _heading(line: str) -> tuple[int, str] | None:
    tokens = _MARKDOWN.parse(line)
    return (int(tokens[0].tag[1:]), tokens[1].content.strip()) if tokens[0].type == "heading_open" else None


def parse_scenario(source: Source, faults: Faults) -> Scenario | None:
    """A canonical file as a Scenario. None where the structure is too broken to check the rest; `faults` says why."""
    parts = sections(source)
    if not parts:
        faults.add(1, 1, "empty", "the file is empty")
        return None
    outline = _Outline(faults)
    for section in parts:
        outline.take(section)
    head = outline.finish()
    if head is None:
        return None
    fields, party = _system(head, faults)
    path = PurePath(source.path)
    return Scenario(
        id=f"{path.parent.name}/{path.stem}",
        path=source.path,
        category=path.parent.name,
        role=fields["Role"],
        world=fields["World"],
        location=fields["Location"],
        party=party,
        turns=tuple(_turn(section) for section in outline.turns),
        line=head.line,
    )


class _Outline:
    """Takes sections in order and complains where they are not # SYSTEM, # CONVERSATION and turns."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.head: Section | None = None
        self.conversation = False
        self.turns: list[Section] = []

    def take(self, section: Section) -> None:
        if section.level == 0:
            self.faults.add(1, 1, "order", "there is text above the first heading")
        elif (section.level, section.title) == (1, "SYSTEM"):
            self._system(section)
        elif (section.level, section.title) == (1, "CONVERSATION"):
            self._conversation(section)
        elif section.level == 2 and section.title in _KINDS:
            self._turn(section)
        else:
            heading = "#" * section.level + " " + section.title
            self.faults.add(section.line, 1, "heading", f"{shown(heading)} is no section of a scenario")

    def finish(self) -> Section | None:
        """The SYSTEM section, once everything is taken."""
        if self.head is None:
            self.faults.add(1, 1, "system", "there is no # SYSTEM section", "begin with one; data:convert may help")
        elif not self.turns:
            self.faults.add(self.head.line, 1, "order", "there are no turns")
        return self.head

    def _system(self, section: Section) -> None:
        if self.head or self.conversation or self.turns:
            self.faults.add(section.line, 1, "order", "# SYSTEM is not the first section")
        self.head = self.head or section

    def _conversation(self, section: Section) -> None:
        if self.head is None or self.conversation or self.turns:
            self.faults.add(section.line, 1, "order", "# CONVERSATION is out of place")
        if any(line.strip() for line in section.body):
            self.faults.add(section.line + 1, 1, "order", "there is text between # CONVERSATION and the first turn")
        self.conversation = True

    def _turn(self, section: Section) -> None:
        if not self.conversation:
            self.faults.add(section.line, 1, "order", f"## {section.title} stands above # CONVERSATION")
            self.conversation = True
        self.turns.append(section)


def _system(head: Section, faults: Faults) -> tuple[dict[str, str], tuple[PartyMember, ...]]:
    fields: dict[str, str] = {}
    party: list[PartyMember] = []
    for number, raw in enumerate(head.body, start=head.line + 1):
        line = raw.rstrip()
        key, colon, value = (part.strip() for part in line.partition(":"))
        if line.startswith("-") and "Party" in fields:
            party += _member(line, number, faults)
        elif colon and key in _FIELDS and key not in fields:
            fields[key] = value
            if (key == "Party") is bool(value):
                what = f"Party is followed by {shown(value)}" if value else f"{key} is empty"
                faults.add(number, len(key) + 2, "system", what)
        elif line:
            faults.add(number, 1, "system", f"{shown(line)} does not belong into the SYSTEM block")
    for key in _FIELDS:
        if key not in fields:
            faults.add(head.line, 1, "system", f"the SYSTEM block has no {key}", f"add a line `{key}: …`")
    if list(fields) != [key for key in _FIELDS if key in fields]:
        faults.add(head.line, 1, "order", f"the fields stand as {', '.join(fields)}", f"reorder: {', '.join(_FIELDS)}")
    return dict.fromkeys(_FIELDS, "") | fields, tuple(party)


def _member(line: str, number: int, faults: Faults) -> list[PartyMember]:
    found = _MEMBER.fullmatch(line)
    if not found:
        faults.add(number, 1, "party", f"{shown(line)} is not a party member")
        return []
    level, now, most = int(found["level"]), int(found["now"]), int(found["most"])
    return [PartyMember(found["name"], found["race"], found["class"], level, now, most, number, 3)]


def _turn(section: Section) -> Turn:
    line, text = section.trimmed()
    return Turn(_KINDS[section.title], text, line, 1)
