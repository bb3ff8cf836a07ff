"""Shares, means and ratios with 95 % bootstrap intervals; the bootstrap resamples conversations, whose turns hang together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

_RESAMPLES = 1000
_FEWEST = 5  # conversations: fewer say nothing about the next one
Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95 % bootstrap interval; `turns` is how many turns it rests on."""

    value: float
    low: float
    high: float
    turns: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def ratio(parts: Iterable[tuple[str, float, float]]) -> Figure:
    """Sum of numerators over sum of denominators of (conversation, numerator, denominator), one of each a turn.

    Where every resample is the same (one conversation, or all turns right) the bootstrap would claim certainty: there
    Wilson's interval over the turns is given instead. A share is (conversation, hit, 1), a mean (conversation, value, 1). Nothing to divide by gives zero of 0 turns.
    """
    table = _by_conversation(parts)
    figure = _bootstrapped(table)
    if figure.turns and figure.low == figure.high and 0 <= figure.value <= 1:
        low, high = _wilson(figure.value, float(table[:, 1].sum()))
        return replace(figure, low=low, high=high)
    return figure


def difference(parts: Iterable[tuple[str, float, float]]) -> Figure:
    """Mean of ours minus theirs over the same turns, (conversation, ours, theirs).

    It is no share, so Wilson's interval never stands in: models that never differ are 0 apart, from 0 to 0.
    """
    return _bootstrapped(_by_conversation((conversation, ours - theirs, 1.0) for conversation, ours, theirs in parts))


def paired(parts: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """How far a model is from another on the same turns, (conversation, ours, theirs): difference, interval, verdict.

    "Better" and "worse" are said only where the whole interval of the mean difference lies on that side of zero, and
    at least five conversations were played.
    """
    figure = difference(parts)
    verdict: Verdict = "better" if figure.low > 0 else "worse" if figure.high < 0 else "undecided"
    if len({conversation for conversation, _, _ in parts}) < _FEWEST:
        verdict = "undecided"
    return figure.as_dict() | {"verdict": verdict}


def _by_conversation(parts: Iterable[tuple[str, float, float]]) -> np.ndarray:
    """Numerators, denominators and turns summed in each conversation, (conversations, 3)."""
    groups: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for conversation, numerator, denominator in parts:
        sums = groups[conversation]
        sums[0] += numerator
        sums[1] += denominator
        sums[2] += 1
    return np.asarray(list(groups.values())).reshape(-1, 3)


def _bootstrapped(table: np.ndarray) -> Figure:
    """The ratio with its bootstrap interval over the rows."""
    if not table[:, 1].sum():
        return Figure(0.0, 0.0, 0.0, 0)
    low, high = np.quantile(_resampled(table), (0.025, 0.975))
    value = table[:, 0].sum() / table[:, 1].sum()
    return Figure(float(value), float(low), float(high), int(table[:, 2].sum()))


def _resampled(table: np.ndarray) -> np.ndarray:
    """The ratio in each resample of the rows; a resample without a denominator says nothing and is left out."""
    picks = np.random.default_rng(0).integers(0, len(table), (_RESAMPLES, len(table)))
    sums = table[:, :2][picks].sum(axis=1)
    kept = sums[sums[:, 1] != 0]
    ratios: np.ndarray = kept[:, 0] / kept[:, 1]
    return ratios


def _wilson(value: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of `count`."""
    z = 1.96
    centre = (value + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * float(np.sqrt(value * (1 - value) / count + z * z / (4 * count * count)))
    return max(0.0, centre - reach), min(1.0, centre + reach)
