"""Thrown dice as the app would write them: faces in range, sums right."""

from __future__ import annotations

import random

from pipeline.data.tools import Matched, parse_dice

FAILS, SUCCEEDS = 11, 14  # totals in between are thrown again, so that a composed outcome is never in doubt
_BANDS = (9, 14, 19)  # a total's outcome band: poor, middling, good, great
_MODIFIERS = (-1, 11)


def throw(matched: Matched, rng: random.Random) -> tuple[str, bool]:
    """A TOOLCALL for a call, and whether it went well (always, where the form cannot fail)."""
    values = dict(matched.values)
    while True:
        values |= _numbers(matched, rng)
        total = int(values.get("total", SUCCEEDS))
        if matched.form.outcome != "check" or total <= FAILS or total >= SUCCEEDS:
            return matched.form.write_result(values), matched.form.outcome != "check" or total >= SUCCEEDS


def throw_again(values: dict[str, str], rng: random.Random) -> dict[str, str]:
    """Another d20 in the same outcome band, natural 1 and 20 kept; the modifier stays."""
    die, modifier = int(values["d20"]), int(values["modifier"])
    if die in (1, 20):
        return values
    faces = [face for face in range(2, 20) if band(face + modifier) == band(die + modifier)]
    face = rng.choice(faces)
    return values | {"d20": str(face), "total": str(face + modifier)}


def band(total: int) -> int:
    return sum(total > edge for edge in _BANDS)


def _numbers(matched: Matched, rng: random.Random) -> dict[str, str]:
    if "{faces}" in matched.form.result and "dice" in matched.values:
        count, sides, bonus = parse_dice(matched.values["dice"])
        terms = [rng.randint(1, sides) for _ in range(count)] + ([bonus] if bonus else [])
        return {"faces": " + ".join(map(str, terms)), "total": str(sum(terms))}
    if "{d20}" in matched.form.result:
        die, modifier = rng.randint(1, 20), rng.randint(*_MODIFIERS)
        return {"d20": str(die), "modifier": str(modifier), "total": str(die + modifier)}
    return {}
