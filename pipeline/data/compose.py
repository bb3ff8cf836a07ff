"""Drills made into short conversations: three to five lines, a party, a place, and dice thrown for their calls."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from pipeline.data.dataset import Split
from pipeline.data.dice import throw
from pipeline.data.drills import Drill, DrillFile, DrillSection
from pipeline.data.scenario import Kind, PartyMember, Scenario, Turn
from pipeline.data.settings import Settings
from pipeline.data.split import normalised, split_of_line
from pipeline.data.tools import Call, Vocabulary

CATEGORY = "drills"
_SIZES = (3, 4, 5)
_MEAN_SIZE = 4
_ENDS_ON_CALL = 0.15
_NONE_SHARE = 3  # of four chosen lines, at most one carries no call, while there are enough others


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


def choose(pool: Sequence[Exercise], conversations: int, rng: random.Random) -> list[list[Exercise]]:
    """The pool dealt into groups of three to five, each line at most once; with fewer conversations than the pool
    would fill, the lines are chosen balanced over kinds of call."""
    balanced = _balanced(pool, rng)[: conversations * _MEAN_SIZE]
    rng.shuffle(balanced)
    groups: list[list[Exercise]] = []
    while balanced and len(groups) < conversations:
        size = rng.choice(_SIZES)
        if len(balanced) - size < _SIZES[0]:
            size = len(balanced) if len(balanced) <= _SIZES[-1] + 1 else _SIZES[0]
        groups.append(balanced[:size])
        balanced = balanced[size:]
    if groups and len(groups[-1]) < _SIZES[0]:
        groups.pop()
    return groups


def compose(
    name: str, group: Sequence[Exercise], settings: Settings, vocabulary: Vocabulary, rng: random.Random
) -> Composed:
    """One conversation. The party is such that hit points stay in 0…max."""
    world, place = settings.place(rng)
    party = settings.party(rng, rng.randint(2, 4))
    turns: list[Turn] = []
    changes: dict[str, list[int]] = defaultdict(list)
    for exercise in group:
        hero, ally = (member.name for member in rng.sample(party, 2))
        turns += _turns(exercise, hero, ally, vocabulary, rng, changes)
    last = group[-1].drill.call
    scenario = Scenario(
        id=f"{CATEGORY}/{name}",
        path=group[0].path,
        category=CATEGORY,
        role="Dungeon Master",
        world=world,
        location=place,
        party=tuple(fit_hit_points(member, changes[member.name], rng) for member in party),
        turns=tuple(turns),
        line=group[0].drill.player.line,
    )
    return Composed(scenario, tuple(group), last is not None and rng.random() < _ENDS_ON_CALL)


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
    """Round after round one line of each kind of call, and a line without a call after every third."""
    kinds: dict[str, list[Exercise]] = defaultdict(list)
    for exercise in sorted(pool, key=lambda one: (one.path, one.drill.player.line)):
        kinds[exercise.kind].append(exercise)
    for lines in kinds.values():
        rng.shuffle(lines)
    silent = kinds.pop("none", [])
    rounds = [list(kinds[kind]) for kind in sorted(kinds)]
    calling = [one for row in zip_longest(*rounds) for one in rng.sample(row, len(row)) if one is not None]
    mixed: list[Exercise] = []
    for index, exercise in enumerate(calling, start=1):
        mixed.append(exercise)
        if index % _NONE_SHARE == 0 and silent:
            mixed.append(silent.pop())
    return mixed + silent


def _turns(
    exercise: Exercise,
    hero: str,
    ally: str,
    vocabulary: Vocabulary,
    rng: random.Random,
    changes: dict[str, list[int]],
) -> list[Turn]:
    def fill(text: str) -> str:
        return text.replace("{hero}", hero).replace("{ally}", ally)

    drill = exercise.drill
    user = Turn(Kind.USER, fill(drill.player.text))
    if drill.call is None:
        return [user, Turn(Kind.DM, fill(drill.dm.text))]
    call = Call(drill.call.tool, fill(drill.call.arguments))
    matched = vocabulary.match(call)
    if matched is None:
        raise ValueError(f"{exercise.path}:{drill.call_line}: {call} is not in the vocabulary")
    if matched.form.hit_points != "none":
        amount = int(matched.values["amount"])
        changes[matched.values["name"]].append(amount if matched.form.hit_points == "gain" else -amount)
    result, well = throw(matched, rng)
    outcome = "Outcome" if matched.form.outcome != "check" else "Success" if well else "Failure"
    line = rng.choice(exercise.section.outcomes[outcome])
    return [
        user,
        Turn(Kind.DM, f"{fill(drill.dm.text)}\n\n{call}"),
        Turn(Kind.TOOLCALL, result),
        Turn(Kind.DM, fill(line.text)),
    ]
