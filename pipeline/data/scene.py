"""A party drawn from the settings that plays drills: names filled in, dice thrown, hit points kept in bounds."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from pipeline.data.dice import throw
from pipeline.data.drills import ALLY, HERO, TOTAL
from pipeline.data.exercises import Exercise, Prose
from pipeline.data.scenario import Kind, PartyMember, Turn
from pipeline.data.settings import Settings
from pipeline.data.tools import Call, Matched, Vocabulary

_CARELESS = 0.5  # of the lines without a capital: names in small letters too
_PLAYER = re.compile(r"^player\b")  # who says "I"; where there is one hero, that one


class Scene:
    """A party of `size` that plays drills, with `borrowed` in other drills' words. `changes` are the hit points won and lost
    so far, in order, with their owners."""

    def __init__(
        self,
        settings: Settings,
        size: int,
        vocabulary: Vocabulary,
        rng: random.Random,
        borrowed: Prose | None = None,
    ) -> None:
        self._party, self._short = settings.party(rng, size), settings.short
        self._vocabulary, self._rng = vocabulary, rng
        self._borrowed = borrowed.for_one_hero if borrowed and size == 1 else borrowed
        self.changes: list[tuple[str, int]] = []

    def play(self, exercise: Exercise) -> list[Turn]:
        """The player's line and the DM's; with a call, its result and what comes of it too."""
        alone = len(self._party) == 1
        hero, *_, ally = (member.name for member in self._rng.sample(self._party, min(2, len(self._party))) * 2)
        called, befriended = map(self._short, (hero, ally))

        def fill(text: str) -> str:
            return text.replace(HERO, called).replace(ALLY, befriended)

        def fill_call(text: str) -> str:
            return text.replace(HERO, hero).replace(ALLY, ally)

        drill = exercise.drill
        line = fill(drill.player.text)
        if _is_careless(drill.player.text) and self._rng.random() < _CARELESS:
            line = line.casefold()
        user = Turn(Kind.USER, line)
        if drill.call is None:
            return [user, Turn(Kind.DM, fill(self._prose(drill.dm.text)))]
        said = fill(drill.dm.text if drill.then else self._prose(drill.dm.text))
        turns, total, outcome = [user], "", "Outcome"
        before: Call | None = None
        for template in (drill.call, *drill.then):
            arguments = fill_call(template.arguments).replace(TOTAL, total)
            call = Call(template.tool, _PLAYER.sub(hero, arguments) if alone else arguments)
            matched = self._match(call, exercise)
            if not follows(matched, outcome, before):
                break
            before = call
            turns.append(Turn(Kind.DM, f"{said}\n\n{call}"))
            result, well = throw(matched, self._rng)
            turns.append(Turn(Kind.TOOLCALL, result))
            total = (self._vocabulary.match_result(matched, result) or {}).get("total", "")
            outcome = "Outcome" if matched.form.outcome != "check" else "Success" if well else "Failure"
            outcomes = [line.text for line in exercise.section.outcomes[outcome]]
            said = fill(self._prose(self._rng.choice([text for text in outcomes if not alone or ALLY not in text])))
            self._note(matched)
        return [*turns, Turn(Kind.DM, said)]

    def _prose(self, own: str) -> str:
        return self._borrowed.draw(self._rng) if self._borrowed else own

    def _match(self, call: Call, exercise: Exercise) -> Matched:
        matched = self._vocabulary.match(call)
        if matched is None:
            raise ValueError(f"{exercise.path}:{exercise.drill.call_line}: {call} is not in the vocabulary")
        return matched

    def _note(self, matched: Matched) -> None:
        if matched.form.hit_points != "none":
            amount = int(matched.values["amount"])
            self.changes.append((matched.values["name"], amount if matched.form.hit_points == "gain" else -amount))

    def fitted(self, changes: Sequence[tuple[str, int]]) -> list[PartyMember]:
        """The party with hit points that stay in 0…max."""
        return [
            fit_hit_points(member, [amount for name, amount in changes if name == member.name], self._rng)
            for member in self._party
        ]


def _is_careless(text: str) -> bool:
    """Whether a player's line has no capital letter but in the names that are put into it."""
    return text == text.casefold()


def follows(matched: Matched, outcome: str, before: Call | None = None) -> bool:
    """Whether an announced call is due: after a roll that can fail, harm follows failure and all else success. Harm is a
    loss of health, and after a save what is rolled."""
    harm = matched.form.hit_points == "loss" or (before is not None and before.arguments.endswith(" save"))
    return outcome == "Outcome" or (outcome == "Failure") == harm


def fit_hit_points(member: PartyMember, changes: Sequence[int], rng: random.Random) -> PartyMember:
    """The member with hit points that these changes, one after another, keep in 0…max."""
    lowest = highest = total = 0
    for change in changes:
        total += change
        lowest, highest = min(lowest, total), max(highest, total)
    most = max(member.max_hit_points, highest - lowest + rng.randint(1, 6))
    now = min(max(member.hit_points, -lowest), most - highest)
    return replace(member, hit_points=now, max_hit_points=most)
