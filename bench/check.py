"""How fast the checker is, and whether its memory stays flat: a peer reads the same files with markdown-it alone.

    python bench/check.py [--files 1000 10000]

For each number of generated files, in a process of its own: scenarios checked in a second of one core's time, the ratio
to the peer, which only parses them, and the most memory the process held. The claim (1,000 scenarios a second, memory
flat in their number) is about `--files 1000 10000 100000`.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
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
    chance = random.Random(seed)
    return " ".join(f"w{chance.getrandbits(40):x}" for _ in range(count))


def generate(folder: Path, files: int) -> None:
    for number in range(files):
        path = folder / f"category{number % 8}" / f"{number // 8 // 1000}" / f"{number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        turns = (TURNS.format(*(words(number * 16 + turn * 4 + part, 15) for part in range(3))) for turn in range(3))
        path.write_text(TEMPLATE.format(number, words(10**9 + number, 4)) + "".join(turns), encoding="utf-8")


def peak() -> float:
    """Megabytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(files: int) -> dict[str, float]:
    """Scenarios a second of processor time, for the checker and for the peer, and the checker's peak in MB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder, files)
        before = time.process_time()
        faults = check_paths([folder])
        spent, most = time.process_time() - before, peak()
        parser, before = MarkdownIt(), time.process_time()
        for path in folder.rglob("*.md"):
            parser.parse(path.read_text(encoding="utf-8"))
        parsing = time.process_time() - before
    return {"faults": len(faults), "checked": files / spent, "parsed": files / parsing, "peak": most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.files[0])))
        return
    print("files     checked a second   peer (parsing only)   ratio   peak MB   faults")
    for files in options.files:
        command = [sys.executable, __file__, "--one", "--files", str(files)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        ratio = found["checked"] / found["parsed"]
        print(
            f"{files:<9,} {found['checked']:<18,.0f} {found['parsed']:<21,.0f} {ratio:<7.2f} {found['peak']:<9.0f} ",
            end="",
        )
        print(f"{found['faults']:.0f}", flush=True)


if __name__ == "__main__":
    main()
