"""Calls that follow one another: announced in a drill, due after the result that allows them."""

from __future__ import annotations

import random

import pytest

from pipeline.data.checks.policy import check_said
from pipeline.data.compose import compose
from pipeline.data.drills import parse_drills
from pipeline.data.exercises import Exercise
from pipeline.data.faults import Faults
from pipeline.data.scenario import Kind
from pipeline.data.settings import load_settings
from pipeline.data.source import Source
from pipeline.data.tools import Call, load_vocabulary
from tests.data.samples import codes

CHAINS = """# DRILLS
## [inventory]
- {hero} downs the red potion, 2d4+2 back.
  - The cork flies off.
  - [inventory: {hero}, -red potion]
  - [roll: 2d4+2]
  - [health: {hero}, +{total}]

### Outcome
- So be it.

## [roll: athletics]
- I climb the wall, 6 if I fall.
  - The stones are wet.
  - [health: player, -6]

### Success
- Up and over.
### Failure
- A hold fails.
### Outcome
- It smarts.
"""


def composed(section: int, seed: int) -> list[str]:
    """The DM's turns of one conversation that repeats the section's drill."""
    file = parse_drills(Source("drills/x.md", CHAINS), Faults("drills/x.md"))
    exercise = Exercise("drills/x.md", file.sections[section].drills[0], file.sections[section])
    made = compose("x", [exercise] * 3, load_settings(), load_vocabulary(), random.Random(seed))
    return [turn.text for turn in made.scenario.turns if turn.kind is not Kind.USER]


def test_each_announced_call_follows_the_result_before_it() -> None:
    turns = composed(0, 1)
    assert [turn.splitlines()[-1].split(":")[0] for turn in turns[:6:2]] == ["[inventory", "[roll", "[health"]
    total = turns[3].rpartition("*")[0].rpartition("*")[2]
    assert turns[4].endswith(f", +{total}]") and turns[5].endswith(f"increased by {total}")


def test_harm_follows_a_failure_only() -> None:
    seen = set()
    for seed in range(10):
        turns = composed(1, seed)
        for turn in turns:
            if turn.startswith(("Up and over", "A hold fails")):
                seen.add((turn[0], turn.endswith(", -6]") and "[health: " in turn))
    assert seen == {("U", False), ("A", True)}


@pytest.mark.parametrize(
    ("code", "old", "new"),
    [
        ("unsaid", "- [health: player, -6]", "- [health: player, -9]"),
        ("unsaid", "- [roll: 2d4+2]", "- [roll: 3d8]"),
        ("argument", "- [roll: 2d4+2]", "- [roll: 2d7]"),
        ("whose", "- [health: {hero}, +{total}]", "- [health: {ally}, +{total}]"),
        ("name", "- [health: {hero}, +{total}]", "- [health: Elara, +{total}]"),
        ("placeholder", "- [health: player, -6]", "- [health: player, -{total}]"),
        ("outcomes", "### Outcome\n- It smarts.\n", ""),
    ],
)
def test_a_planted_fault_in_a_chain_is_found(code: str, old: str, new: str) -> None:
    assert codes(CHAINS, "drills/x.md") == set()
    assert code in codes(CHAINS.replace(old, new), "drills/x.md")


@pytest.mark.parametrize(
    ("line", "formula", "said"),
    [
        ("My maul hit, two six-siders plus five.", "2d6+5", True),
        ("Dagger damage, a d4 and three.", "1d4+3", True),
        ("Three d sixes, tell me what they show.", "3d6", True),
        ("Second wind, 1d10 plus my level which is 5.", "1d10+5", True),
        ("Two goblins and six dogs, five paces off.", "2d6+5", False),
        ("My maul hit, two six-siders plus five.", "3d6+5", False),
    ],
)
def test_dice_may_be_said_in_words(line: str, formula: str, said: bool) -> None:
    vocabulary, faults = load_vocabulary(), Faults("x.md")
    matched = vocabulary.match(Call("roll", formula))
    assert matched
    check_said(matched.values, line, line, vocabulary, 1, faults)
    assert (faults.found == []) is said
