"""Drills made into conversations with a party, a place, and dice thrown for their calls: short ones of three to five
lines, or families that begin alike and end on one line each."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from operator import itemgetter

from pipeline.data.exercises import Exercise, Prose
from pipeline.data.scenario import PartyMember, Scenario, Turn
from pipeline.data.scene import Scene
from pipeline.data.settings import Settings
from pipeline.data.tools import Vocabulary

CATEGORY = "drills"
_SIZES = (3, 4, 5)
_ENDS_ON_CALL = 0.15
_PLAYED_OUT = 0.1  # of a family's calls: their result and what follows stand there too
_JUST_BEGUN = 0.7  # of the families: their lines are the game's first
_ALONE = 0.25  # of those whose lines speak of no second hero: a party of one, as every fifth scenario has


@dataclass(frozen=True, slots=True)
class Composed:
    """A conversation from drills. `ends_on_call` asks for the last TOOLCALL and what follows it to be left out."""

    scenario: Scenario
    exercises: tuple[Exercise, ...]
    ends_on_call: bool


def choose(pool: Sequence[Exercise], rng: random.Random) -> list[list[Exercise]]:
    """The pool dealt into groups of three to five, each line at most once."""
    left = _balanced(pool, rng)
    rng.shuffle(left)
    groups: list[list[Exercise]] = []
    while left:
        size = rng.choice(_SIZES)
        if len(left) - size < _SIZES[0]:
            size = len(left) if len(left) <= _SIZES[-1] + 1 else _SIZES[0]
        groups.append(left[:size])
        left = left[size:]
    if groups and len(groups[-1]) < _SIZES[0]:
        groups.pop()
    return groups


def choose_families(pool: Sequence[Exercise], lines: int, branches: int, rng: random.Random) -> list[list[Exercise]]:
    """At most so many lines of the pool, balanced over kinds of call, dealt into groups of a beginning, which calls
    something, and its branches."""
    balanced = _balanced(pool, rng)[:lines]
    rng.shuffle(balanced)
    count = max(1, len(balanced) // (branches + 1))
    beginnings = [one for one in balanced if one.drill.call][:count]
    taken = set(map(id, beginnings))
    rest = [one for one in balanced if id(one) not in taken]
    return [[first, *rest[index::count]] for index, first in enumerate(beginnings)]


def compose(
    name: str, group: Sequence[Exercise], settings: Settings, vocabulary: Vocabulary, rng: random.Random
) -> Composed:
    """One conversation, line after line."""
    world, place = settings.place(rng)
    scene = Scene(settings, _company(group, rng), vocabulary, rng)
    turns = [turn for exercise in group for turn in scene.play(exercise)]
    scenario = _scenario(name, group[0], world, place, scene.fitted(scene.changes), turns)
    last = group[-1].drill.call
    return Composed(scenario, tuple(group), last is not None and rng.random() < _ENDS_ON_CALL)


def compose_family(
    name: str,
    group: Sequence[Exercise],
    settings: Settings,
    vocabulary: Vocabulary,
    rng: random.Random,
    borrowed: Prose | None = None,
) -> list[Composed]:
    """A conversation for every line of the group but the first, with which they begin; in some the game has just
    begun, and every line has one. They end on the DM's reply to their line, or when what it called for has come to its
    end. With `borrowed`, all that the DM says is drawn from there, save where it may announce what follows: a model that
    speaks for itself says what no author would, and must yet call what the player's line asks for."""
    world, place = settings.place(rng)
    scene = Scene(settings, _company(group, rng), vocabulary, rng, borrowed)
    beginning: list[Turn] = []
    branches = list(group)
    if rng.random() >= _JUST_BEGUN and len(group) > 1:
        beginning = scene.play(branches.pop(0))
    ends: list[list[Turn]] = []
    back_and_forth = list(scene.changes)
    for exercise in branches:
        before = len(scene.changes)
        ends.append(scene.play(exercise))
        new = scene.changes[before:]
        back_and_forth += [*new, *((name, -amount) for name, amount in new)]
    party = scene.fitted(back_and_forth)
    return [
        Composed(
            _scenario(f"{name}/{number}", exercise, world, place, party, [*beginning, *end]),
            (exercise,),
            exercise.drill.call is not None and not exercise.drill.then and rng.random() >= _PLAYED_OUT,
        )
        for number, (exercise, end) in enumerate(zip(branches, ends, strict=True))
    ]


def _company(group: Sequence[Exercise], rng: random.Random) -> int:
    """How many heroes play the group's lines."""
    alone = rng.random() < _ALONE and not any(one.needs_an_ally for one in group)
    return 1 if alone else rng.randint(2, 4)


def _scenario(
    name: str, first: Exercise, world: str, place: str, party: Sequence[PartyMember], turns: Sequence[Turn]
) -> Scenario:
    return Scenario(
        id=f"{CATEGORY}/{name}",
        path=first.path,
        category=CATEGORY,
        role="Dungeon Master",
        world=world,
        location=place,
        party=tuple(party),
        turns=tuple(turns),
        line=first.drill.player.line,
    )


def _balanced(pool: Sequence[Exercise], rng: random.Random) -> list[Exercise]:
    """Round after round one line of each kind of call, and the lines without a call spread evenly among them."""
    kinds: dict[str, list[Exercise]] = defaultdict(list)
    for exercise in sorted(pool, key=lambda one: (one.path, one.drill.player.line)):
        kinds[exercise.kind].append(exercise)
    for lines in kinds.values():
        rng.shuffle(lines)
    silent = kinds.pop("none", [])
    rounds = [list(kinds[kind]) for kind in sorted(kinds)]
    calling = [one for row in zip_longest(*rounds) for one in rng.sample(row, len(row)) if one is not None]
    placed = [((number + 1) * len(calling), one) for number, one in enumerate(silent)]
    placed += [(number * len(silent), one) for number, one in enumerate(calling)]
    return [one for _, one in sorted(placed, key=itemgetter(0))]
