"""The run in progress, or the latest one, as charts in the terminal: read from metrics.jsonl, step by step."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline import files
from pipeline.errors import UsageError
from pipeline.progress import Mode

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60
_SERIES: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "loss": lambda entry: entry["loss"],
    "held-out loss": lambda entry: entry.get("held_out_loss"),
    "tokens/s": lambda entry: entry["tokens"] / max(entry["seconds"], 1e-3),
    "memory, GB": lambda entry: entry["memory"] / 1e9 if "memory" in entry else None,
}


def show(runs: Path, mode: Mode, pause: float = 0.5) -> None:
    """Until the run ends, or at once where none is in progress; with `json` one event a step on stdout."""
    path = newest(runs)
    if mode == "json":
        for entry in follow(path, runs, pause):
            print(json.dumps({"event": "step", "run": _run_of(path), **entry}, ensure_ascii=False), flush=True)
        return
    entries: list[dict[str, Any]] = []
    console = Console()
    if mode == "plain":
        entries += follow(path, runs, pause)
        console.print(chart(_run_of(path), entries))
        return
    with Live(chart(_run_of(path), entries), console=console, auto_refresh=False) as live:
        for entry in follow(path, runs, pause):
            entries[:] = [known for known in entries if known["step"] < entry["step"]]  # a resumed run goes back
            entries.append(entry)
            live.update(chart(_run_of(path), entries), refresh=True)


def newest(runs: Path) -> Path:
    """The metrics of the run that was written to last. Raises UsageError where nothing was ever trained."""
    found = sorted(runs.glob("*/training/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError("no run has trained anything yet", where=str(runs), fix="start one: pnpm run train")
    return found[-1]


def follow(path: Path, runs: Path, pause: float) -> Iterator[dict[str, Any]]:
    """Every step so far, then each new one until nobody works in `runs` or this run's training is done."""
    done = 0
    while True:
        ended = not _in_progress(path, runs)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]
        done = min(done, len(whole))
        for line in whole[done:]:
            yield json.loads(line)
        done = len(whole)
        if ended:
            return
        time.sleep(pause)


def _in_progress(path: Path, runs: Path) -> bool:
    manifest = path.parent.parent / "manifest.json"
    if manifest.is_file() and "training" in files.read_json(manifest)["stages"]:
        return False
    try:
        with (runs / ".lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def chart(run: str, entries: list[dict[str, Any]]) -> Group:
    table = Table("", "now", "best", "", box=None, padding=(0, 1))
    for name, pick in _SERIES.items():
        values = [value for value in map(pick, entries) if value is not None]
        if values:
            best = min(values) if "loss" in name else max(values)
            table.add_row(name, f"{values[-1]:,.3f}", f"{best:,.3f}", spark(values))
    steps = f"step {entries[-1]['step']}" if entries else "no step yet"
    return Group(Text(f"{run}: {steps}"), table)


def spark(values: list[float], width: int = _WIDTH) -> str:
    """A line of bars, each the mean of its share of the values; the lowest bar is the smallest mean."""
    count = min(width, len(values))
    edges = [len(values) * place // count for place in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(_BARS[round((mean - low) / span * (len(_BARS) - 1)) if span else 0] for mean in means)


def _run_of(path: Path) -> str:
    return path.parent.parent.name
