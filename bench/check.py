"""How fast the checker is, and whether its memory stays flat: a peer reads the same files with markdown-it alone.

    python bench/check.py [--files 4000]

Prints scenarios a second on one core, the share of the peer's speed, and the memory that each further scenario costs.
The claim (1,000 scenarios a second, memory flat) is meant for `--files 100000`.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from markdown_it import MarkdownIt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.data.check import check_paths

TEMPLATE = """# SYSTEM
Role: Dungeon Master
World: World {0}
Location: {1}
Party:
- Thordak (Dragonborn Fighter, Level 5, HP: 40/45)
- Elara (Wood Elf Wizard, Level 5, HP: 28/28)

# CONVERSATION
"""
TURNS = """## User
I creep along the wall of {0}.

## DM
Somebody coughs: {1}.

[roll: stealth]

## TOOLCALL
stealth: 12 + 5(skill) = *17*

## DM
{2}.

"""


def words(seed: int, count: int) -> str:
    """Invented words, so that no two scenarios are alike."""
    return " ".join(f"w{(seed * 7919 + index * 104729 + index * index) % 999983}" for index in range(count))


def generate(folder: Path, files: int) -> None:
    for number in range(files):
        path = folder / f"category{number % 8}" / f"{number // 8 // 1000}" / f"{number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        turns = (TURNS.format(*(words(number * 16 + turn * 4 + part, 15) for part in range(3))) for turn in range(3))
        path.write_text(TEMPLATE.format(number, words(number, 4)) + "".join(turns), encoding="utf-8")


def peak() -> float:
    """Megabytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=4000)
    files = parser.parse_args().files
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder, files)
        check_paths([folder / "category0"])
        warm, before = peak(), time.process_time()
        faults = check_paths([folder])
        spent = time.process_time() - before
        grown = peak() - warm
        paths = list(folder.rglob("*.md"))
        before = time.process_time()
        parser_alone = MarkdownIt()
        for path in paths:
            parser_alone.parse(path.read_text(encoding="utf-8"))
        peer = time.process_time() - before
    print(f"checker: {files:,} scenarios in {spent:.1f} s of CPU, {files / spent:,.0f} a second, {len(faults)} faults")
    print(f"peer (markdown-it, parsing only): {files / peer:,.0f} a second; ratio {peer / spent:.2f}")
    print(f"memory: peak {peak():.0f} MB, {grown * 1e6 / files:,.0f} bytes for each scenario above the first eighth")


if __name__ == "__main__":
    main()
