"""Texts that several tests share."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.check import Checked, check_source
from pipeline.data.source import Source
from pipeline.data.tools import load_vocabulary

GOOD = """# SYSTEM
Role: Dungeon Master
World: Carrowmere
Location: Fish market
Party:
- Thordak (Dragonborn Fighter, Level 5, HP: 40/45)
- Elara (Wood Elf Wizard, Level 5, HP: 28/28)

# CONVERSATION
## User
I creep along the wall, keeping to the shade.

## DM
Somebody coughs on the far side of the crates.

[roll: stealth]

## TOOLCALL
stealth: 12 + 5(skill) = *17*

## DM
Nobody turns round.

## User
What is that smell?

## DM
Herring. Last week's herring.

## User
Elara takes the bronze key from the hook.

## DM
It is colder than it should be.

[inventory: Elara, +bronze key]

## TOOLCALL
inventory: Elara gains bronze key

## DM
Somewhere below, a lock clicks in sympathy.
"""

DRILLS = """# DRILLS
## [roll: stealth]
- I slip past the sentry while he yawns.
  - His jaw cracks wide.
- {hero} crawls under the wagons without a sound.
  - Axle grease drips on the cobbles.

### Success
- Nobody looks your way.
### Failure
- A head turns.

## [inventory]
- {hero} scoops the coins off the altar.
  - The silver is cold.
  - [inventory: {hero}, +coins]

### Outcome
- So be it.

## none
- My cousin once snuck out of a prison, true story.
  - The guard is unimpressed.
"""


def check(text: str, path: str = "combat/sample.md") -> Checked:
    return check_source(Source(path, text), load_vocabulary())


def codes(text: str, path: str = "combat/sample.md") -> set[str]:
    """The rules that a text breaks."""
    return {fault.code for fault in check(text, path).faults}


def varied(number: int) -> str:
    """A sound scenario unlike its neighbours."""
    words = [f"w{(number * 7919 + index * 104729) % 99991}x" for index in range(60)]
    return (
        GOOD.replace("I creep along the wall, keeping to the shade.", " ".join(words[:20]))
        .replace("Somebody coughs on the far side of the crates.", " ".join(words[20:40]))
        .replace("What is that smell?", " ".join(words[40:50]))
        .replace("Elara takes the bronze key from the hook.", "Elara takes the bronze key " + " ".join(words[50:]))
        .replace("Somewhere below, a lock clicks in sympathy.", " ".join(reversed(words)))
        .replace("Herring. Last week's herring.", " ".join(words[10:30]))
    )


def write_corpus(folder: Path, scenarios: int = 12) -> Path:
    """A small sound data folder."""
    for number in range(scenarios):
        path = folder / ("combat", "travel")[number % 2] / f"s{number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(varied(number), encoding="utf-8")
    lines = ["# DRILLS"]
    for skill in ("stealth", "persuasion", "athletics"):
        lines.append(f"## [roll: {skill}]")
        for number in range(14):
            lines += [
                f"- {skill} line {number * 37 % 101} for {{hero}} q{number}{skill}z",
                f"  - Dust settles, {number}.",
            ]
        lines += ["### Success", "- It works.", "### Failure", "- It does not."]
    lines += ["## none"]
    for number in range(10):
        lines += [f"- idle talk {number} about r{number * 13 % 97}t", "  - A shrug."]
    (folder / "drills").mkdir(exist_ok=True)
    (folder / "drills" / "all.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
