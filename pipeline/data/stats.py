"""What a dataset holds: counts by category, tool, skill and kind of turn, and how they differ between two runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.data.dataset import Conversation
from pipeline.data.tools import Vocabulary, find_calls

_BAR = 30  # characters


def count(
    conversations: Iterable[Conversation], vocabulary: Vocabulary, tokens: Callable[[str], int] | None = None
) -> dict[str, Any]:
    """Counts as plain JSON. Sizes are tokens where a tokenizer's counter is given, words otherwise."""
    tables: dict[str, Counter[str]] = {
        name: Counter() for name in ("splits", "kinds", "categories", "tools", "calls", "turns")
    }
    size = 0
    measure = tokens or (lambda text: len(text.split()))
    for conversation in conversations:
        tables["splits"][conversation.split] += 1
        tables["kinds"][f"{conversation.kind}/{conversation.split}"] += 1
        tables["categories"][f"{conversation.category}/{conversation.split}"] += 1
        for message in conversation.messages:
            size += measure(message["content"])
            _count_turn(message["role"], message["content"], vocabulary, tables)
    report: dict[str, Any] = {name: dict(sorted(table.items())) for name, table in tables.items()}
    return report | {"tokens" if tokens else "words": size}


def _count_turn(role: str, text: str, vocabulary: Vocabulary, tables: dict[str, Counter[str]]) -> None:
    if role == "user":
        tables["turns"]["TOOLCALL" if text.startswith("<TOOLCALL>") else "User"] += 1
    elif role == "assistant":
        calls = find_calls(text)
        tables["turns"]["DM with a call" if calls else "DM without a call"] += 1
        for call in calls:
            matched = vocabulary.match(call)
            tables["tools"][call.tool] += 1
            if matched:
                fixed = bool(vocabulary.expansions(matched.form))
                tables["calls"][f"{call.tool}: {call.arguments if fixed else matched.form.name}"] += 1


def chart(report: Mapping[str, Any]) -> str:
    """Every table as bars for a terminal."""
    lines: list[str] = []
    for name, table in report.items():
        if isinstance(table, dict) and table:
            lines += [name, *_bars(table), ""]
    for unit in ("tokens", "words"):
        if unit in report:
            lines.append(f"{report[unit]:,} {unit}")
    return "\n".join(lines)


def _bars(table: Mapping[str, int]) -> list[str]:
    width = max(map(len, table))
    most = max(table.values())
    rows = sorted(table.items(), key=lambda row: (-row[1], row[0]))
    return [f"  {key:<{width}} {number:>6,} {'█' * max(1, round(number / most * _BAR))}" for key, number in rows]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two report.json files, one line each; empty when the datasets are the same."""
    lines = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) or isinstance(after, dict):
            table, other = before or {}, after or {}
            for key in sorted({*table, *other}):
                if table.get(key, 0) != other.get(key, 0):
                    change = other.get(key, 0) - table.get(key, 0)
                    lines.append(f"{name} {key}: {table.get(key, 0):,} → {other.get(key, 0):,} ({change:+,})")
        elif before != after:
            lines.append(f"{name}: {before} → {after}")
    return lines


def newest_report(runs: Path) -> Path | None:
    """The report.json of the run under `runs` whose dataset was made last; None before the first."""
    reports = runs.glob("*/data/report.json")
    return max(reports, key=lambda path: (path.stat().st_mtime_ns, path), default=None)
