"""A scenario as typed values: who plays, and what is said in which turn. Lines and columns count from one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Who speaks. The value is the heading of the section."""

    USER = "User"
    DM = "DM"
    TOOLCALL = "TOOLCALL"


@dataclass(frozen=True, slots=True)
class PartyMember:
    """One adventurer; `hit_points` lies in 0…`max_hit_points`, `level` in 1…20."""

    name: str
    race: str
    character_class: str
    level: int
    hit_points: int
    max_hit_points: int
    line: int = 0
    column: int = 1

    def render(self) -> str:
        health = f"HP: {self.hit_points}/{self.max_hit_points}"
        return f"- {self.name} ({self.race} {self.character_class}, Level {self.level}, {health})"


@dataclass(frozen=True, slots=True)
class Turn:
    """One section of the conversation. `text` is its body without the blank lines around it; `line` is the first
    line of that body (of the heading where the body is empty)."""

    kind: Kind
    text: str
    line: int = 0
    column: int = 1

    @property
    def prose(self) -> str:
        """The text without a last line that is a call."""
        head, _, last = self.text.rpartition("\n")
        return head.rstrip() if _is_call_line(last) else self.text

    @property
    def last_line(self) -> int:
        """Line number of the turn's last line in its file."""
        return self.line + self.text.count("\n")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One conversation with its SYSTEM block. `id` is category/name, `path` where it was read."""

    id: str
    path: str
    category: str
    role: str
    world: str
    location: str
    party: tuple[PartyMember, ...]
    turns: tuple[Turn, ...]
    line: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.party)

    def member(self, name: str) -> PartyMember | None:
        return next((member for member in self.party if member.name == name), None)

    def system(self) -> str:
        """The canonical SYSTEM block's lines, which become the system message."""
        head = [f"Role: {self.role}", f"World: {self.world}", f"Location: {self.location}", "Party:"]
        return "\n".join([*head, *(member.render() for member in self.party)])

    def of(self, kind: Kind) -> Iterator[Turn]:
        return (turn for turn in self.turns if turn.kind is kind)


def render(scenario: Scenario) -> str:
    """The scenario as a canonical file."""
    parts = [f"# SYSTEM\n{scenario.system()}\n\n# CONVERSATION"]
    parts += [f"## {turn.kind.value}\n{turn.text}\n" for turn in scenario.turns]
    return parts[0] + "\n" + "\n".join(parts[1:])


def _is_call_line(line: str) -> bool:
    return line.startswith("[") and line.endswith("]") and ":" in line
