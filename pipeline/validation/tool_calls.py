"""How well the calls in the replies agree with gold, each figure with a 95 % bootstrap interval over conversations."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pipeline.data.tools import Call, calls_match, find_calls, load_vocabulary
from pipeline.validation.play import Reply

_RESAMPLES = 1000
_OPEN_BRACKET = re.compile(r"\[[^\]]*$|\[[^\]:]*\]")


@dataclass(frozen=True, slots=True)
class Judged:
    """One reply against its gold: `hit` is the app's truth, the rest says what went wrong."""

    conversation: str
    category: str
    gold: str
    found: str
    hit: bool
    name: bool
    invented: bool
    malformed: bool
    stopped: bool

    @property
    def wants_call(self) -> bool:
        return bool(self.gold)


@dataclass(frozen=True, slots=True)
class Figure:
    """A share with its 95 % bootstrap interval; `turns` is what it is a share of."""

    value: float
    low: float
    high: float
    turns: int


def judge(reply: Reply) -> Judged:
    gold, found = find_calls(reply.gold), find_calls(reply.text)
    return Judged(
        conversation=reply.conversation,
        category=reply.category,
        gold=_names(gold),
        found=_names(found),
        hit=calls_match(gold, found),
        name=[call.tool for call in gold] == [call.tool for call in found],
        invented=bool(found) and not gold,
        malformed=bool(_OPEN_BRACKET.search(reply.text))
        or any(load_vocabulary().match(call) is None for call in found),
        stopped=reply.stopped,
    )


def figures(judged: Sequence[Judged]) -> dict[str, dict[str, float | int]]:
    """The headline figures of one model."""
    chosen: dict[str, tuple[Callable[[Judged], bool], Callable[[Judged], bool]]] = {
        "tool_call_accuracy": (lambda turn: True, lambda turn: turn.hit),
        "call_turn_accuracy": (lambda turn: turn.wants_call, lambda turn: turn.hit),
        "no_call_accuracy": (lambda turn: not turn.wants_call, lambda turn: turn.hit),
        "tool_choice_accuracy": (lambda turn: True, lambda turn: turn.name),
        "tool_name_accuracy": (lambda turn: turn.wants_call, lambda turn: turn.name),
        "calls_invented": (lambda turn: not turn.wants_call, lambda turn: turn.invented),
        "malformed_calls": (lambda turn: True, lambda turn: turn.malformed),
        "stop_rate": (lambda turn: True, lambda turn: turn.stopped),
    }
    return {name: asdict(share(judged, among, true)) for name, (among, true) in chosen.items()}


def share(judged: Sequence[Judged], among: Callable[[Judged], bool], true: Callable[[Judged], bool]) -> Figure:
    """Share of turns `among` for which `true` holds; the bootstrap resamples conversations, whose turns hang together."""
    groups: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for turn in judged:
        if among(turn):
            groups[turn.conversation][0] += true(turn)
            groups[turn.conversation][1] += 1
    if not groups:
        return Figure(0.0, 0.0, 0.0, 0)
    counts = np.asarray(list(groups.values()))
    picks = np.random.default_rng(0).integers(0, len(counts), (_RESAMPLES, len(counts)))
    sums = counts[picks].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], (0.025, 0.975))
    hits, turns = counts.sum(axis=0)
    return Figure(float(hits / turns), float(low), float(high), int(turns))


def table(judged: Sequence[Judged], key: Callable[[Judged], str]) -> dict[str, dict[str, float | int]]:
    """Tool-call accuracy by any property of a turn, such as its category or its gold call."""
    return {
        value: asdict(share(judged, lambda turn, value=value: key(turn) == value, lambda turn: turn.hit))  # type: ignore[misc]
        for value in sorted({key(turn) for turn in judged})
    }


def tool_key(turn: Judged) -> str:
    """The gold call without what varies from game to game: `roll: stealth`, `health`, `none`."""
    if not turn.gold:
        return "none"
    tool, _, arguments = turn.gold.partition(": ")
    return (
        turn.gold
        if tool in ("roll", "check") and not arguments[:1].isdigit()
        else ("roll: dice" if tool == "roll" else tool)
    )


def _names(calls: Sequence[Call]) -> str:
    return "; ".join(f"{call.tool}: {call.arguments}" for call in calls)
