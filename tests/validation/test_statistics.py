"""Intervals and verdicts."""

import numpy as np
import pytest

from pipeline.statistics import paired, ratio


def games(count, turns, share, seed=0):
    rng = np.random.default_rng(seed)
    return [(f"game {game}", float(rng.random() < share), 1.0) for game in range(count) for _ in range(turns)]


def test_a_share_is_hits_over_turns_and_lies_in_its_interval():
    figure = ratio(games(40, 5, 0.7))
    assert figure.low < figure.value < figure.high
    assert figure.turns == 200
    assert 0.6 < figure.value < 0.8


def test_the_interval_holds_the_truth_about_95_times_in_100():
    inside = sum((figure := ratio(games(30, 4, 0.6, seed))).low <= 0.6 <= figure.high for seed in range(100))
    assert inside >= 88


def test_turns_of_one_game_count_as_one_observation():
    together = [(f"game {game}", float(game % 2), 1.0) for game in range(10) for _ in range(20)]
    apart = [(f"turn {turn}", hit, one) for turn, (_, hit, one) in enumerate(together)]
    assert ratio(together).high - ratio(together).low > 2 * (ratio(apart).high - ratio(apart).low)


def test_a_single_game_is_never_certain():
    figure = ratio([("only", 1.0, 1.0)] * 3)
    assert figure.value == 1
    assert figure.low < 0.6
    assert figure.high == 1


def test_nothing_to_share_is_zero_of_zero_turns():
    assert ratio([]).turns == 0


def test_a_ratio_weighs_by_its_denominator():
    assert ratio([("a", 10.0, 5.0), ("b", 0.0, 15.0)]).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"), [(0.9, 0.3, "better"), (0.3, 0.9, "worse"), (0.6, 0.6, "undecided")]
)
def test_paired_models_are_told_apart_only_where_they_differ(ours, theirs, verdict):
    first, second = games(30, 5, ours, 1), games(30, 5, theirs, 2)
    found = paired([(game, a, b) for (game, a, _), (_, b, _) in zip(first, second, strict=True)])
    assert found["verdict"] == verdict


def test_a_handful_of_games_decides_nothing():
    assert paired([("one", 1.0, 0.0), ("two", 1.0, 0.0)])["verdict"] == "undecided"


@pytest.mark.parametrize("games_played", [11, 22, 26, 104])
def test_equal_models_are_undecided_and_nothing_apart(games_played):
    hits = games(games_played, 3, 0.6)
    found = paired([(game, hit, hit) for game, hit, _ in hits])
    assert found == {"value": 0.0, "low": 0.0, "high": 0.0, "turns": 3 * games_played, "verdict": "undecided"}
    assert paired([(f"game {game}", 1.0, 1.0) for game in range(games_played)])["verdict"] == "undecided"
