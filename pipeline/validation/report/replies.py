"""Which replies to show, and where each came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.data.dataset import read_conversations
from pipeline.validation.play import Reply
from pipeline.validation.tool_calls import Judged, judge

_FIELDS = {field.name for field in fields(Reply)}


@dataclass(frozen=True, slots=True)
class Shown:
    """A reply beside what the untuned base said there (None where it did not play); `where` is file:line."""

    reply: Reply
    judged: Judged
    base: str | None
    where: str


def read(generations: Path, dataset: Path) -> list[Shown]:
    """Every reply of the model in generations.jsonl, judged again from its gold history."""
    histories = {item.id: item.messages for item in read_conversations(dataset)}
    rows = [json.loads(line) for line in generations.read_text(encoding="utf-8").splitlines()]
    base = {(row["conversation"], row["index"]): row["text"] for row in rows if row["model"] == "baseline"}
    replies = [_reply(row) for row in rows if row["model"] == "model"]
    return [
        Shown(
            reply,
            judge(reply, histories[reply.conversation][: reply.index]),
            base.get((reply.conversation, reply.index)),
            locate(reply),
        )
        for reply in replies
    ]


def best(shown: list[Shown], count: int = 10) -> list[Shown]:
    """Right calls first, then the closest to gold; one of each game before a second one of any."""
    return _varied(sorted(shown, key=_goodness, reverse=True), count)


def worst(shown: list[Shown], count: int = 10) -> list[Shown]:
    """Wrong calls that were wanted first, then broken and out-of-character replies."""
    wrong = [item for item in shown if not item.judged.hit or item.judged.leaks or not item.judged.stopped]
    return _varied(sorted(wrong, key=_goodness), count)


def faults(judged: Judged) -> list[str]:
    """What is wrong with a reply, in words."""
    found = []
    if not judged.hit:
        wanted, did = (", ".join(map(str, calls)) or "no call" for calls in (judged.gold, judged.found))
        found.append(f"wanted {wanted}, got {did}")
    if judged.malformed:
        found.append("a broken call")
    if not judged.stopped:
        found.append("did not come to an end")
    return [*found, *judged.contradictions, *(f"out of character: {leak}" for leak in judged.leaks)]


def locate(reply: Reply) -> str:
    """file:line of the gold reply where the file is there to be read, else of its conversation."""
    first = reply.gold.splitlines()[0] if reply.gold else ""
    try:
        lines = Path(reply.source).read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for number, line in enumerate(lines[reply.line - 1 :], start=reply.line):
        if first and line.strip() == first.strip():
            return f"{reply.source}:{number}"
    return f"{reply.source}:{reply.line}"


def _reply(row: Mapping[str, Any]) -> Reply:
    return Reply(**{name: value for name, value in row.items() if name in _FIELDS})


def _goodness(item: Shown) -> tuple[float, ...]:
    judged = item.judged
    faulty = bool(judged.leaks) + judged.malformed + bool(judged.contradictions) + (not judged.stopped)
    return (judged.hit, -faulty, judged.wants_call if judged.hit else -judged.wants_call, judged.chrf)


def _varied(ordered: list[Shown], count: int) -> list[Shown]:
    """The first `count`, but a second one of a game only after one of every game that is in the list."""
    seen: dict[str, int] = {}
    ranked = []
    for place, item in enumerate(ordered):
        turn = seen[item.reply.conversation] = seen.get(item.reply.conversation, 0) + 1
        ranked.append((turn, place, item))
    return [item for _, _, item in sorted(ranked, key=lambda entry: entry[:2])[:count]]
