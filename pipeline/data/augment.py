"""Twins of training scenarios: other names, places, hit points, dice and player's words; the same calls and outcomes.

What a later turn speaks of is left as it is. Every twin passes the checker, or it is not made.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from pipeline.config import DataConfig
from pipeline.data.check import check_source
from pipeline.data.dice import throw_again
from pipeline.data.faults import errors
from pipeline.data.paraphrases import Variant, rephrase
from pipeline.data.scenario import Kind, PartyMember, Scenario, Turn, render
from pipeline.data.scene import fit_hit_points
from pipeline.data.settings import Settings, typical_hit_points
from pipeline.data.source import Source
from pipeline.data.tools import Vocabulary, find_calls

_PROPER = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{3,}\b")
_NUMBER = re.compile(
    r"\b(?:[0-9]+|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen|twenty|thirty)\b"
)
_SPEAKS_OF_SHEET = re.compile(r"\b(?:hit points?|hp|levels?)\b", re.IGNORECASE)


def augment(
    scenario: Scenario,
    config: DataConfig,
    settings: Settings,
    vocabulary: Vocabulary,
    seed: int,
    variants: Sequence[Variant] = (),
) -> list[Scenario]:
    """At most `config.augmentations` twins that differ from the scenario and from one another."""
    twins: list[Scenario] = []
    seen = {render(scenario)}
    for number in range(1, config.augmentations + 1):
        rng = random.Random(f"{seed}/{scenario.id}/{number}")  # noqa: S311 - reproducible, not secret
        twin = scenario
        if config.paraphrases:
            twin = in_other_words(twin, variants, rng)
        if config.renaming:
            twin = rename(twin, settings, rng)
        if config.hit_points:
            twin = vary_sheets(twin, vocabulary, rng)
        if config.dice:
            twin = roll_again(twin, vocabulary, rng)
        text = render(twin)
        if text not in seen and not errors(check_source(Source(scenario.path, text), vocabulary).faults):
            seen.add(text)
            twins.append(replace(twin, id=f"{scenario.id}~{number}"))
    return twins


def in_other_words(scenario: Scenario, variants: Sequence[Variant], rng: random.Random) -> Scenario:
    """Each player's line that has authored variants, said as one of them."""
    lines: dict[str, list[str]] = {}
    for variant in variants:
        if variant.scenario == scenario.id:
            lines.setdefault(variant.original, []).append(variant.line.text)
    return rephrase(scenario, {original: rng.choice(texts) for original, texts in lines.items()})


def rename(scenario: Scenario, settings: Settings, rng: random.Random) -> Scenario:
    """Other names for the party, the world and places named in the location, the same everywhere in the text."""
    text = render(scenario)
    names: dict[str, str] = {}
    fresh = [person.name for person in settings.people if person.name not in text]
    rng.shuffle(fresh)
    for member in scenario.party:
        if " " not in member.name and _only_a_name(member.name, text) and fresh:
            names[member.name] = fresh.pop()
    names |= _places(scenario, settings, rng, text)
    if not names:
        return scenario
    pattern = re.compile(r"\b(?:" + "|".join(sorted(map(re.escape, names), key=len, reverse=True)) + r")\b")

    def swap(old: str) -> str:
        return pattern.sub(lambda found: names[found[0]], old)

    return replace(
        scenario,
        world=swap(scenario.world),
        location=swap(scenario.location),
        party=tuple(replace(member, name=swap(member.name)) for member in scenario.party),
        turns=tuple(replace(turn, text=swap(turn.text)) for turn in scenario.turns),
    )


def vary_sheets(scenario: Scenario, vocabulary: Vocabulary, rng: random.Random) -> Scenario:
    """Other levels and hit points, unless somebody speaks of them; they still bear what happens."""
    if any(_SPEAKS_OF_SHEET.search(turn.text) for turn in scenario.turns) or _told_after_a_change(scenario):
        return scenario
    changes = _changes(scenario, vocabulary)
    return replace(
        scenario,
        party=tuple(_other_sheet(member, changes.get(member.name, []), rng) for member in scenario.party),
    )


def roll_again(scenario: Scenario, vocabulary: Vocabulary, rng: random.Random) -> Scenario:
    """Every d20 thrown again within its outcome band, unless a later turn says one of its numbers."""
    turns = list(scenario.turns)
    for index, turn in enumerate(turns[1:], start=1):
        calls = find_calls(turns[index - 1].text)
        matched = vocabulary.match(calls[-1]) if turn.kind is Kind.TOOLCALL and calls else None
        values = vocabulary.match_result(matched, turn.text) if matched else None
        if matched and values and "d20" in values and not _spoken(values, turns[index + 1 :]):
            again = throw_again(matched.values | values, rng)
            turns[index] = replace(turn, text=matched.form.write_result(again))
    return replace(scenario, turns=tuple(turns))


def _only_a_name(name: str, text: str) -> bool:
    """False where the name is also a word of the text ("Rook" and "a rook"), which must not change."""
    return len(name) > 2 and not re.search(rf"\b{re.escape(name.lower())}s?\b", text)


def _places(scenario: Scenario, settings: Settings, rng: random.Random, text: str) -> dict[str, str]:
    worlds = [world for world in sorted(settings.worlds) if world not in text]
    places = [place for place in settings.place_names if place not in text]
    rng.shuffle(places)
    found = {scenario.world: rng.choice(worlds)} if worlds else {}
    for place in dict.fromkeys(_PROPER.findall(scenario.location)):
        if places and place not in scenario.world and _only_a_name(place, text):
            found[place] = places.pop()
    return found


def _changes(scenario: Scenario, vocabulary: Vocabulary) -> dict[str, list[int]]:
    """What happens to each member's hit points, in order. A lone member is also the player."""
    changes: dict[str, list[int]] = {}
    for turn in scenario.of(Kind.DM):
        for call in find_calls(turn.text):
            matched = vocabulary.match(call)
            if matched and matched.form.hit_points != "none":
                amount = int(matched.values["amount"])
                name = matched.values["name"]
                if name == "player" and len(scenario.party) == 1:
                    name = scenario.party[0].name
                changes.setdefault(name, []).append(amount if matched.form.hit_points == "gain" else -amount)
    return changes


def _other_sheet(member: PartyMember, changes: list[int], rng: random.Random) -> PartyMember:
    level = min(max(member.level + rng.randint(-2, 3), 1), 20)
    most = typical_hit_points(member.character_class, level, rng)
    wounded = member.hit_points < member.max_hit_points
    now = rng.randint(most // 2, most - 1) if wounded else most
    return fit_hit_points(replace(member, level=level, hit_points=now, max_hit_points=most), changes, rng)


def _told_after_a_change(scenario: Scenario) -> bool:
    """True where the DM says a number right after hit points changed: it may be what is left of them."""
    pairs = pairwise(scenario.turns)
    return any(
        one.kind is Kind.TOOLCALL and one.text.startswith("health:") and _NUMBER.search(other.text.lower())
        for one, other in pairs
    )


def _spoken(values: dict[str, str], later: list[Turn]) -> bool:
    told = next((turn.text for turn in later if turn.kind is Kind.DM), "")
    return any(re.search(rf"\b{re.escape(values[name])}\b", told) for name in ("d20", "total"))
