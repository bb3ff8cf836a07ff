"""How a reply reads beside its gold: repetition, variety, length, closeness. Calls are taken out first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from pipeline.data.tools import find_calls

_WORD = re.compile(r"\w+(?:['’]\w+)?")
_CHRF_ORDER, _CHRF_BETA = 6, 2


def without_calls(text: str) -> str:
    """The text as the app shows it."""
    for call in reversed(find_calls(text)):
        text = text[: call.start] + text[call.end :]
    return text.strip()


def words(text: str) -> tuple[str, ...]:
    """Lower-case words of the shown text."""
    return tuple(_WORD.findall(without_calls(text).lower()))


def repetition(tokens: Sequence[str]) -> float:
    """Share of a reply's 4-grams that it has said before: 0 in good prose, near 1 in a loop."""
    grams = _grams(tokens, 4)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(replies: Sequence[Sequence[str]], order: int) -> tuple[int, int]:
    """Distinct and all n-grams of several replies."""
    grams = [gram for tokens in replies for gram in _grams(tokens, order)]
    return len(set(grams)), len(grams)


def chrf(text: str, reference: str) -> float:
    """chrF2 (Popović 2015): F-score of character 1- to 6-grams, recall weighted twice, whitespace ignored; 0…1."""
    ours, theirs = "".join(text.split()), "".join(reference.split())
    scores = []
    for order in range(1, _CHRF_ORDER + 1):
        mine, gold = Counter(_slices(ours, order)), Counter(_slices(theirs, order))
        if not mine and not gold:
            continue
        common = (mine & gold).total()
        precision = common / mine.total() if mine else 0.0
        recall = common / gold.total() if gold else 0.0
        weight = _CHRF_BETA**2
        total = weight * precision + recall
        scores.append((1 + weight) * precision * recall / total if total else 0.0)
    return sum(scores) / len(scores) if scores else 1.0


def _grams(tokens: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[at : at + order]) for at in range(len(tokens) - order + 1)]


def _slices(text: str, order: int) -> list[str]:
    return [text[at : at + order] for at in range(len(text) - order + 1)]
