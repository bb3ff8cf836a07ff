"""The app's side of the table: who is in the party, and what a call does, with seeded dice.

The results are written by the vocabulary's own templates, so a new tool is executed without a change here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from pipeline.data.tools import Call, Matched, Vocabulary, load_vocabulary, parse_dice

_MEMBER = re.compile(r"^- (?P<name>[^(\n]+?) \((?P<about>[^)\n]*)\)\s*$", re.MULTILINE)
_PRESSURE = re.compile(r"HP: (\d+)/(\d+)")
_TOOLCALL = re.compile(r"\A<TOOLCALL>(.*)</TOOLCALL>\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Member:
    """A party member as the SYSTEM block lists it; `about` is what stands in the parentheses."""

    name: str
    about: str

    @property
    def hit_points(self) -> tuple[int, int] | None:
        found = _PRESSURE.search(self.about)
        return (int(found[1]), int(found[2])) if found else None


def party(system: str) -> tuple[Member, ...]:
    """The members in a SYSTEM block's own lines, `- Name (Race Class, Level N, HP: a/b)`."""
    return tuple(Member(found["name"].strip(), found["about"]) for found in _MEMBER.finditer(system))


def toolcall(result: str) -> str:
    """The user message that carries a result."""
    return f"<TOOLCALL>{result}</TOOLCALL>"


def toolcall_text(message: str) -> str | None:
    """What a TOOLCALL message carries, or None for a player's line."""
    found = _TOOLCALL.match(message)
    return found[1] if found else None


class Table:
    """Executes calls with dice that follow from `seed` alone."""

    def __init__(self, system: str, seed: int, vocabulary: Vocabulary | None = None) -> None:
        self.vocabulary = vocabulary or load_vocabulary()
        self.names = {member.name for member in party(system)}
        self._dice = Random(seed)  # noqa: S311 - a game, not a secret

    def execute(self, call: Call) -> str | None:
        """The TOOLCALL's text, or None where the call is not in the vocabulary or names a stranger."""
        matched = self.vocabulary.match(call)
        if matched is None or not self._knows(matched):
            return None
        return matched.form.write_result(self._values(matched))

    def _knows(self, matched: Matched) -> bool:
        for slot, value in matched.values.items():
            kind = self.vocabulary.slots[slot]
            if kind.kind == "party" and value not in self.names and value not in kind.values:
                return False
        return True

    def _values(self, matched: Matched) -> dict[str, str]:
        """What is in the call, and the dice that its result needs."""
        values = dict(matched.values)
        total = 0
        for name, slot in self.vocabulary.slots.items():
            if f"{{{name}}}" not in matched.form.result or name in values:
                continue
            if slot.kind == "d20":
                face = self._dice.randint(1, 20)
                total, values[name] = total + face, str(face)
            elif slot.kind == "modifier":
                bonus = self._dice.randint(0, 7)
                total, values[name] = total + bonus, str(bonus)
            elif slot.kind == "faces":
                parts = self._roll(
                    next(value for key, value in values.items() if self.vocabulary.slots[key].kind == "dice")
                )
                total, values[name] = total + sum(parts), " + ".join(map(str, parts))
        totals = {name: str(total) for name, slot in self.vocabulary.slots.items() if slot.kind == "total"}
        return totals | values

    def _roll(self, formula: str) -> list[int]:
        count, sides, bonus = parse_dice(formula)
        faces = [self._dice.randint(1, sides) for _ in range(count)]
        return [*faces, bonus] if bonus else faces
