"""Drill files: single player lines by the hundred, each with the DM's line and the call that is due."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pipeline.data.faults import Faults, shown
from pipeline.data.source import Source
from pipeline.data.tools import Call, find_calls

_MARKDOWN = MarkdownIt("zero").enable(["heading", "list"])
_MARKDOWN.core.ruler.enableOnly(["normalize", "block"])
OUTCOMES = ("Success", "Failure", "Outcome")
HERO, ALLY, TOTAL = "{hero}", "{ally}", "{total}"  # two of the party, and what the dice just showed
TOPICS = ("inventory", "health", "spellcast", "dice")


@dataclass(frozen=True, slots=True)
class Line:
    """A text and the line it stands on."""

    text: str
    line: int
    column: int = 3


@dataclass(frozen=True, slots=True)
class Drill:
    """A player's line, what the DM says before the call (or in answer), and the call that is due, if any.

    `then` are the calls that follow one another after its result, as the line has announced them. Texts and arguments
    may hold {hero} and {ally}; a health call that follows dice may hold {total}."""

    player: Line
    dm: Line
    call: Call | None
    call_line: int
    then: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class DrillSection:
    """Drills of one heading with the outcomes that fit them all. `title` is the heading ("[roll: stealth]", "none")."""

    title: str
    line: int
    drills: tuple[Drill, ...]
    outcomes: dict[str, tuple[Line, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DrillFile:
    id: str
    path: str
    sections: tuple[DrillSection, ...]


@dataclass(slots=True)
class Item:
    """A list item: its text and the items nested in it."""

    text: str
    line: int
    column: int
    below: list[Item] = field(default_factory=list)


@dataclass(slots=True)
class Block:
    """A heading and the list items below it."""

    level: int
    title: str
    line: int
    items: list[Item] = field(default_factory=list)


def is_drills(source: Source) -> bool:
    """True for files in a folder named drills and those that begin with # DRILLS."""
    return PurePath(source.path).parent.name == "drills" or source.text.lstrip().startswith("# DRILLS")


def parse_drills(source: Source, faults: Faults) -> DrillFile:
    """The file as sections of drills; whatever has another form is a fault at its line and left out."""
    parts = blocks(source, faults)
    if not parts or (parts[0].level, parts[0].title) != (1, "DRILLS"):
        faults.add(1, 1, "drill", "the file does not begin with # DRILLS")
    found: list[DrillSection] = []
    for block in parts:
        if block.level == 2:
            found.append(_section(block, faults))
        elif block.level == 3 and block.title in OUTCOMES and found:
            _outcomes(block, found[-1], faults)
        elif (block.level, block.title) != (1, "DRILLS"):
            faults.add(block.line, 1, "heading", f"{shown('#' * block.level + ' ' + block.title)} has no place here",
                       "use ## for a call, ### Success, ### Failure or ### Outcome below it")  # fmt: skip
    path = PurePath(source.path)
    return DrillFile(f"{path.parent.name}/{path.stem}", source.path, tuple(found))


def _section(block: Block, faults: Faults) -> DrillSection:
    calls = find_calls(block.title)
    topic = block.title.strip("[]")
    if not (calls or block.title == "none" or (block.title == f"[{topic}]" and topic)):
        faults.add(block.line, 1, "drill-section", f"{shown('## ' + block.title)} names no call")
    drills = [_drill(item, calls[0] if calls else None, block.title, faults) for item in block.items]
    return DrillSection(block.title, block.line, tuple(drill for drill in drills if drill))


def _drill(item: Item, call: Call | None, title: str, faults: Faults) -> Drill | None:
    below = list(item.below)
    calls: list[Call] = []
    call_line = item.line
    while below and title != "none" and (found := _sole_call(below[-1])):
        calls.insert(0, found)
        call_line = below.pop().line
    if call is None and title != "none":
        if not calls:
            faults.add(item.line, item.column, "drill-call", f"{shown(item.text)} has no call of its own")
            return None
        call = calls.pop(0)
    if len(below) != 1 or below[0].below or not item.text:
        what = (
            f"{shown(item.text)} has {len(below)} DM lines below it"
            if len(below) != 1
            else "a bullet is nested too deep"
        )
        faults.add(item.line, item.column, "drill", what)
        return None
    dm = below[0]
    player = Line(item.text, item.line, item.column)
    return Drill(player, Line(dm.text, dm.line, dm.column), call, call_line, tuple(calls))


def _sole_call(item: Item) -> Call | None:
    """The call, where the bullet is nothing else."""
    found = find_calls(item.text)
    return found[0] if len(found) == 1 and found[0].end - found[0].start == len(item.text) else None


def _outcomes(block: Block, section: DrillSection, faults: Faults) -> None:
    lines = []
    for item in block.items:
        if item.below:
            faults.add(item.below[0].line, item.below[0].column, "drill", "an outcome has nothing nested below it")
        lines.append(Line(item.text, item.line, item.column))
    section.outcomes[block.title] = (*section.outcomes.get(block.title, ()), *lines)


def blocks(source: Source, faults: Faults) -> list[Block]:
    """Headings with their bullets. Text that is neither is a fault."""
    blocks: list[Block] = []
    open_items: list[Item] = []
    lines = source.lines
    for token, after in _pairs(source):
        start = token.map[0] if token.map else 0
        if token.type == "heading_open":
            blocks.append(Block(int(token.tag[1:]), after.content.strip(), start + 1))
        elif token.type == "list_item_open":
            column = len(lines[start]) - len(lines[start].lstrip()) + 3
            item = Item("", start + 1, column)
            parent = open_items[-1].below if open_items else blocks[-1].items if blocks else []
            parent.append(item)
            open_items.append(item)
        elif token.type == "list_item_close":
            open_items.pop()
        elif token.type == "paragraph_open":
            _text(token, after, open_items, start, faults)
    return blocks


def _pairs(source: Source) -> list[tuple[Token, Token]]:
    tokens = _MARKDOWN.parse(source.text)
    return [(token, tokens[min(index + 1, len(tokens) - 1)]) for index, token in enumerate(tokens)]


def _text(token: Token, inline: Token, open_items: list[Item], start: int, faults: Faults) -> None:
    if not open_items or token.level > 6:
        faults.add(
            start + 1, 1, "drill", "this text is no bullet of a drill", "begin the line with `- `, or `  - ` below"
        )
    elif open_items[-1].text:
        faults.add(start + 1, 1, "drill", "a bullet holds one paragraph", "join the lines, or begin a new bullet")
    else:
        open_items[-1].text = " ".join(line.strip() for line in inline.content.split("\n"))
