"""SYSTEM blocks of other dialects: bold keys, character sheets as lists, parties below headings or bullets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from markdown_it import MarkdownIt

from pipeline.data.faults import Faults, shown
from pipeline.data.scenario import PartyMember

_MARKDOWN = MarkdownIt("zero").enable(["heading", "list", "hr"])
_MARKDOWN.core.ruler.enableOnly(["normalize", "block"])
_FIELDS = ("role", "world", "location")
_USED = frozenset({"name", "race", "class", "level", "health", "hp"})
_NONE = frozenset({"none", "nobody", "-", ""})
_HEALTH = re.compile(r"([0-9]{1,9})\s*/\s*([0-9]{1,9})")
_INLINE = re.compile(r"(?P<name>[^():]+?)\s*\((?P<sheet>[^()]*)\)\s*")
_SEXES = frozenset({"male", "female"})
_PARENTHESES = re.compile(r"\s*\([^()]*\)")


@dataclass(slots=True)
class Event:
    """A heading, bullet or line of the SYSTEM part. `level` is the heading's, or how deep the bullet is nested."""

    kind: str
    level: int
    text: str
    line: int


@dataclass(slots=True)
class Sheet:
    """A character's keys and values in lower case keys, and where the sheet begins."""

    line: int
    values: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class System:
    """What a SYSTEM part says. `player` is the name below ## Player, if it has one."""

    fields: dict[str, str] = field(default_factory=dict)
    party: list[PartyMember] = field(default_factory=list)
    player: str = ""


def plain(text: str) -> str:
    """Text without the marks of emphasis around words."""
    return re.sub(r"\*\*|__|(?<!\w)[*_]|[*_](?!\w)", "", text).strip()


def events(lines: list[str], first: int) -> list[Event]:
    """The lines as events; `first` is the number of the first line in its file."""
    tokens = _MARKDOWN.parse("\n".join(lines))
    found: list[Event] = []
    depth = 0
    bullet = False
    for index, token in enumerate(tokens):
        line = first + (token.map[0] if token.map else 0)
        if token.type in ("bullet_list_open", "ordered_list_open"):
            depth += 1
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            depth -= 1
        elif token.type == "list_item_open":
            bullet = True
        elif token.type == "heading_open":
            found.append(Event("heading", int(token.tag[1:]), plain(tokens[index + 1].content), line))
        elif token.type == "inline" and tokens[index - 1].type == "paragraph_open":
            kind = "item" if bullet else "text"
            found += [Event(kind, depth, part.strip(), line + at) for at, part in enumerate(token.content.split("\n"))]
            bullet = False
    return found


def read_system(lines: list[str], first: int, faults: Faults) -> System:
    """Fields and party; what the canonical block has no place for is reported where it stands."""
    system = System()
    sheets: list[Sheet] = []
    part = "system"
    for event in events(lines, first):
        if event.kind == "heading":
            part = _enter(event, part, sheets)
        elif part == "system" and event.kind == "text":
            _field(event, system, faults)
        else:
            part = "party" if part == "system" else part
            _entry(event, part, sheets, faults)
    for sheet in sheets:
        member = _member(sheet, faults)
        if member:
            system.party.append(member)
            if sheet.values.get("player"):
                system.player = member.name
    return system


def _enter(event: Event, part: str, sheets: list[Sheet]) -> str:
    title = event.text.casefold()
    if title in ("player", "party"):
        if title == "player":
            sheets.append(Sheet(event.line, {"player": "yes"}))
        return title
    sheets.append(Sheet(event.line, {"name": event.text}))
    return part


def _field(event: Event, system: System, faults: Faults) -> None:
    key, colon, value = plain(event.text).partition(":")
    key = key.strip().casefold()
    if colon and key in _FIELDS and key not in system.fields:
        system.fields[key] = value.strip()
    elif key != "party":
        faults.add(event.line, 1, "outside", f"{shown(event.text)} has no place in the SYSTEM block, and is left out")


def _entry(event: Event, part: str, sheets: list[Sheet], faults: Faults) -> None:
    text = plain(event.text)
    inline = _INLINE.fullmatch(text)
    key, colon, value = text.partition(":")
    if inline and part == "party":
        sheets.append(_inline(inline["name"], inline["sheet"], event.line))
    elif colon and sheets and event.kind == "item":
        sheets[-1].values[key.strip().casefold()] = value.strip()
    elif event.kind == "item" and event.level == 1 and part == "party" and not colon:
        sheets.append(Sheet(event.line, {"name": text}))
    elif text.casefold() not in _NONE:
        faults.add(event.line, 1, "outside", f"{shown(event.text)} has no place in the party, and is left out")


def _inline(name: str, text: str, line: int) -> Sheet:
    """`Aria (Elf Ranger, Level 3, HP: 24/24, AC: 15)` as a sheet."""
    kin, *rest = (part.strip() for part in text.split(","))
    words = kin.split()
    values = {"name": name.strip()}
    if words and words[0].casefold() in _SEXES:
        values["sex"] = words.pop(0)
    values |= {"race": " ".join(words[:-1]), "class": words[-1] if words else ""}
    for part in rest:
        key, colon, value = part.partition(":")
        if part.casefold().startswith("level "):
            key, value = "level", part[6:]
        values[key.strip().casefold()] = value.strip() if colon or key == "level" else "yes"
    return Sheet(line, values)


def _member(sheet: Sheet, faults: Faults) -> PartyMember | None:
    values = sheet.values
    name = re.sub(r"[()\[\],:]", " ", values.get("name", "")).strip()
    health = _HEALTH.search(values.get("health", "") or values.get("hp", ""))
    level = re.search(r"[0-9]{1,9}", values.get("level", ""))
    kin = f"{_PARENTHESES.sub('', values.get('race', ''))} {values.get('class', '')}"
    words = re.sub(r"[()\[\],:]", " ", kin).split()
    if not (name and health and level and len(words) >= 2):
        wanted = {"name": name, "level": level, "health": health, "race and class": len(words) >= 2}
        missing = ", ".join(key for key, value in wanted.items() if not value)
        faults.add(sheet.line, 1, "party", f"the sheet of {shown(name or '?')} has no {missing}")
        return None
    extra = [key for key in values if key not in (*_USED, "player")]
    extra += ["the race's second part"] if _PARENTHESES.search(values.get("race", "")) else []
    if extra:
        what = f"the sheet of {name} also has {', '.join(extra)}; a canonical member has no place for that"
        faults.add(sheet.line, 1, "dialect", what)
    return PartyMember(
        " ".join(name.split()),
        " ".join(words[:-1]),
        words[-1],
        int(level[0]),
        int(health[1]),
        int(health[2]),
        sheet.line,
    )
