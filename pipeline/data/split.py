"""Which part a text belongs to: decided by its own content alone, so that adding a file never moves another."""

from __future__ import annotations

import hashlib
import re

from pipeline.data.dataset import Split
from pipeline.data.scenario import Scenario, render

TRAIN, DEV = 0.84, 0.06  # the rest is the test part
SALT = 5282  # chosen once, so that every category has its share of each part; another salt moves every text
_WORD = re.compile(r"\w+")


def normalised(text: str) -> str:
    """The text's words in lower case: what makes two lines the same line."""
    return " ".join(_WORD.findall(text.casefold()))


def split_of_scenario(scenario: Scenario) -> Split:
    return _split(f"scenario {SALT}", scenario.category, render(scenario))


def split_of_line(text: str) -> Split:
    """The part of a drill, by its player's line."""
    return _split("drill", "", normalised(text))


def _split(kind: str, category: str, text: str) -> Split:
    digest = hashlib.sha256("\n".join((kind, category, text)).encode()).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    if share < TRAIN:
        return "train"
    return "dev" if share < TRAIN + DEV else "test"
