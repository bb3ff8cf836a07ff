"""Drills as they are drawn for conversations, and the prose that others lend them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.data.dataset import Split
from pipeline.data.drills import ALLY, Drill, DrillFile, DrillSection
from pipeline.data.split import normalised, split_of_line

_LENT_WORDS = 8  # the longest prose that is lent: it is not trained, so every token of it is work that teaches little
_LENT_SPEECH = 12  # words, where somebody speaks in it
_SPOKEN = 0.25  # of what is borrowed: authors let nobody speak before a call, and a model that does must yet call


@dataclass(frozen=True, slots=True)
class Exercise:
    """A drill with what it needs from its file."""

    path: str
    drill: Drill
    section: DrillSection

    @property
    def kind(self) -> str:
        """What it is balanced by: a skill or ability as called ("roll: stealth"), else the heading."""
        return self.section.title.strip("[]")

    @property
    def needs_an_ally(self) -> bool:
        """Whether one hero alone cannot play it."""
        calls = (self.drill.call, *self.drill.then) if self.drill.call else ()
        texts = [self.drill.player.text, self.drill.dm.text, *(call.arguments for call in calls)]
        choices = [[line.text for line in lines] for lines in self.section.outcomes.values() if lines]
        return any(ALLY in text for text in texts) or any(all(ALLY in text for text in texts) for texts in choices)


def exercises(files: Iterable[DrillFile], split: Split) -> list[Exercise]:
    """Every drill of a split; a player's line that occurs twice is taken once."""
    seen: set[str] = set()
    found = []
    for file in files:
        for section in file.sections:
            for drill in section.drills:
                key = normalised(drill.player.text)
                if key not in seen and split_of_line(drill.player.text) == split:
                    seen.add(key)
                    found.append(Exercise(file.path, drill, section))
    return found


@dataclass(frozen=True)
class Prose:
    """What the DM may say in another drill's words: prose, and prose in which somebody speaks."""

    plain: Sequence[str]
    spoken: Sequence[str]

    @classmethod
    def of(cls, pool: Iterable[Exercise]) -> Prose:
        """The short ones of the pool."""
        texts = [one.drill.dm.text for one in pool]
        spoken = [text for text in texts if '"' in text and len(text.split()) <= _LENT_SPEECH]
        return cls([text for text in texts if '"' not in text and len(text.split()) <= _LENT_WORDS], spoken)

    @cached_property
    def for_one_hero(self) -> Prose:
        """That which speaks of no second hero."""
        plain, spoken = ([text for text in texts if ALLY not in text] for texts in (self.plain, self.spoken))
        return Prose(plain, spoken)

    def draw(self, rng: random.Random) -> str:
        return rng.choice(self.spoken if self.spoken and rng.random() < _SPOKEN else self.plain)
