"""All the figures of one model from its judged replies: headline figures, breakdowns, confusion of skills."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.statistics import Figure, paired, ratio
from pipeline.validation import prose
from pipeline.validation.tool_calls import NO_CALL, Judged, key

Figures = dict[str, Any]
COMPARED = ("tool_call_accuracy", "call_turn_accuracy", "no_call_accuracy", "stop_rate")
_Test = Callable[[Judged], bool]

_EVERY: _Test = lambda turn: True  # noqa: E731 - a table of small tests reads best as a table
_SHARES: dict[str, tuple[_Test, _Test]] = {
    "tool_call_accuracy": (_EVERY, lambda turn: turn.hit),
    "call_turn_accuracy": (lambda turn: turn.wants_call, lambda turn: turn.hit),
    "no_call_accuracy": (lambda turn: not turn.wants_call, lambda turn: turn.hit),
    "tool_choice_accuracy": (_EVERY, lambda turn: turn.name),
    "tool_name_accuracy": (lambda turn: turn.wants_call, lambda turn: turn.name),
    "argument_accuracy": (lambda turn: turn.wants_call and turn.name, lambda turn: turn.hit),
    "calls_invented": (lambda turn: not turn.wants_call, lambda turn: turn.invented),
    "malformed_calls": (_EVERY, lambda turn: turn.malformed),
    "stop_rate": (_EVERY, lambda turn: turn.stopped),
    "contradictions": (_EVERY, lambda turn: bool(turn.contradictions)),
    "out_of_character": (_EVERY, lambda turn: bool(turn.leaks)),
}


def figures(judged: Sequence[Judged]) -> Figures:
    """Every figure of one model, each with its interval; shares and chrF lie in 0…1."""
    result: Figures = {name: share(judged, *tests).as_dict() for name, tests in _SHARES.items()}
    result |= {name: figure.as_dict() for name, figure in _prose_figures(judged).items()}
    result["by_tool"] = table(judged, lambda turn: turn.tool)
    result["by_skill"] = table([turn for turn in judged if _is_listed(key(turn.gold))], lambda turn: key(turn.gold))
    result["by_category"] = table(judged, lambda turn: turn.category)
    result["by_turn"] = table(judged, lambda turn: turn.after)
    result["skill_confusion"] = confusion(judged)
    return result


def share(judged: Sequence[Judged], among: _Test, true: _Test) -> Figure:
    """Share of the turns `among` for which `true` holds."""
    return ratio((turn.conversation, float(true(turn)), 1.0) for turn in judged if among(turn))


def table(judged: Sequence[Judged], of: Callable[[Judged], str]) -> dict[str, dict[str, Any]]:
    """Tool-call accuracy by any property of a turn, such as its category or its gold call."""
    groups: dict[str, list[Judged]] = defaultdict(list)
    for turn in judged:
        groups[of(turn)].append(turn)
    return {value: share(groups[value], *_SHARES["tool_call_accuracy"]).as_dict() for value in sorted(groups)}


def confusion(judged: Sequence[Judged]) -> dict[str, dict[str, int]]:
    """For each listed gold call (`roll: stealth`), how often each call was found in its place."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for turn in judged:
        gold = key(turn.gold)
        if _is_listed(gold):
            counts[gold][key(turn.found)] += 1
    return {gold: dict(sorted(counts[gold].items())) for gold in sorted(counts)}


def compare(ours: Sequence[Judged], theirs: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """Paired bootstrap on the turns that both played: better, worse or undecided for each compared figure."""
    other = {(turn.conversation, turn.index): turn for turn in theirs}
    both = [(turn, other[turn.conversation, turn.index]) for turn in ours if (turn.conversation, turn.index) in other]
    result = {}
    for name in COMPARED:
        among, true = _SHARES[name]
        result[name] = paired([(a.conversation, float(true(a)), float(true(b))) for a, b in both if among(a)])
    return result


def _prose_figures(judged: Sequence[Judged]) -> dict[str, Figure]:
    games: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for turn in judged:
        games[turn.conversation].append(turn.words)
    return {
        "repetition": ratio((turn.conversation, prose.repetition(turn.words), 1.0) for turn in judged),
        "distinct_1": _variety(games, 1),
        "distinct_2": _variety(games, 2),
        "length_ratio": ratio((turn.conversation, float(len(turn.words)), float(turn.gold_words)) for turn in judged),
        "chrf": ratio((turn.conversation, turn.chrf, 1.0) for turn in judged),
    }


def _variety(games: dict[str, list[tuple[str, ...]]], order: int) -> Figure:
    """Distinct over all n-grams, counted within each game."""
    counts = {game: prose.distinct(replies, order) for game, replies in games.items()}
    return ratio((game, float(different), float(every)) for game, (different, every) in counts.items())


def _is_listed(name: str) -> bool:
    return ": " in name and name != NO_CALL
