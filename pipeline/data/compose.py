"""Drills made into conversations with a party, a place, and dice thrown for their calls: short ones of three to five
lines, or families that begin alike and end on one line each."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from operator import itemgetter

from pipeline.data.dataset import Split
from pipeline.data.dice import throw
from pipeline.data.drills import Drill, DrillFile, DrillSection
from pipeline.data.scenario import Kind, PartyMember, Scenario, Turn
from pipeline.data.settings import Settings
from pipeline.data.split import normalised, split_of_line
from pipeline.data.tools import Call, Matched, Vocabulary

CATEGORY = "drills"
_SIZES = (3, 4, 5)
_ENDS_ON_CALL = 0.15
_PLAYED_OUT = 0.1  # of a family's calls: their result and what follows stand there too
_JUST_BEGUN = 0.7  # of the families: their lines are the game's first


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


@dataclass(frozen=True, slots=True)
class Composed:
    """A conversation from drills. `ends_on_call` asks for the last TOOLCALL and what follows it to be left out."""

    scenario: Scenario
    exercises: tuple[Exercise, ...]
    ends_on_call: bool


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
    scene = _Scene(settings.party(rng, rng.randint(2, 4)), vocabulary, rng)
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
    borrowed: Sequence[str] = (),
) -> list[Composed]:
    """A conversation for every line of the group but the first, with which they begin; in some the game has just
    begun, and every line has one. They end on the DM's reply to their line, or when what it called for has come to its
    end. With `borrowed`, all that the DM says is drawn from there: a model that speaks for itself says what no author
    would, and must yet call what the player's line asks for."""
    world, place = settings.place(rng)
    scene = _Scene(settings.party(rng, rng.randint(2, 4)), vocabulary, rng, borrowed)
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


def fit_hit_points(member: PartyMember, changes: Sequence[int], rng: random.Random) -> PartyMember:
    """The member with hit points that these changes, one after another, keep in 0…max."""
    lowest = highest = total = 0
    for change in changes:
        total += change
        lowest, highest = min(lowest, total), max(highest, total)
    most = max(member.max_hit_points, highest - lowest + rng.randint(1, 6))
    now = min(max(member.hit_points, -lowest), most - highest)
    return replace(member, hit_points=now, max_hit_points=most)


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


class _Scene:
    """A party that plays drills. `changes` are the hit points won and lost so far, in order, with their owners."""

    def __init__(
        self, party: Sequence[PartyMember], vocabulary: Vocabulary, rng: random.Random, borrowed: Sequence[str] = ()
    ) -> None:
        self._party, self._vocabulary, self._rng, self._borrowed = party, vocabulary, rng, borrowed
        self.changes: list[tuple[str, int]] = []

    def play(self, exercise: Exercise) -> list[Turn]:
        """The player's line and the DM's; with a call, its result and what comes of it too."""
        hero, ally = (member.name for member in self._rng.sample(self._party, 2))

        def fill(text: str) -> str:
            return text.replace("{hero}", hero).replace("{ally}", ally)

        drill = exercise.drill
        user = Turn(Kind.USER, fill(drill.player.text))
        if drill.call is None:
            return [user, Turn(Kind.DM, fill(self._prose(drill.dm.text)))]
        turns, said, total, outcome = [user], fill(self._prose(drill.dm.text)), "", "Outcome"
        for template in (drill.call, *drill.then):
            call = Call(template.tool, fill(template.arguments).replace("{total}", total))
            matched = self._match(call, exercise)
            if not follows(matched, outcome):
                break
            turns.append(Turn(Kind.DM, f"{said}\n\n{call}"))
            result, well = throw(matched, self._rng)
            turns.append(Turn(Kind.TOOLCALL, result))
            total = (self._vocabulary.match_result(matched, result) or {}).get("total", "")
            outcome = "Outcome" if matched.form.outcome != "check" else "Success" if well else "Failure"
            said = fill(self._prose(self._rng.choice(exercise.section.outcomes[outcome]).text))
            self._note(matched)
        return [*turns, Turn(Kind.DM, said)]

    def _prose(self, own: str) -> str:
        return self._rng.choice(self._borrowed) if self._borrowed else own

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


def follows(matched: Matched, outcome: str) -> bool:
    """Whether an announced call is due: after a roll that can fail, harm follows failure and all else success."""
    return outcome == "Outcome" or (outcome == "Failure") == (matched.form.hit_points == "loss")
