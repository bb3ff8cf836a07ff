"""Progress people like: a live bar on a terminal, plain lines when piped, JSON lines for machines.

Everything but the result goes to stderr, so that stdout ends with the two contract lines; with `--json` every
event is one object on stdout.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

Mode = Literal["live", "plain", "json"]
_PLAIN_INTERVAL = 10.0  # seconds between two plain lines of one stage


def pick_mode(json_output: bool) -> Mode:
    if json_output:
        return "json"
    return "live" if sys.stderr.isatty() else "plain"


class Stage:
    """One stage under way. `update` may be called as often as you like; what is shown is throttled."""

    def __init__(self, reporter: Reporter, name: str, task: TaskID | None) -> None:
        self.name = name
        self.started = time.monotonic()
        self.summary = ""
        self._reporter = reporter
        self._task = task
        self._last_line = 0.0
        self._first: tuple[float, float] | None = None
        self._unit = ""

    def update(self, done: float, total: float, unit: str = "step", **metrics: float | str) -> None:
        """Say how far the stage is, with metrics such as loss=2.31 or tokens_per_second=512."""
        now = time.monotonic()
        if self._first is None or unit != self._unit:  # another part of the stage has another pace
            self._first, self._unit = (now, done), unit
        left = self._time_left(now, done, total)
        self._reporter._show_update(self, now, done, total, unit, left, metrics)

    def note(self, text: str) -> None:
        """Say something that should stay on the screen: a choice and its reason."""
        self._reporter.note(text)

    def _time_left(self, now: float, done: float, total: float) -> float | None:
        if self._first is None:
            return None
        elapsed, advanced = now - self._first[0], done - self._first[1]
        return elapsed / advanced * (total - done) if advanced > 0 else None


class Reporter:
    def __init__(self, mode: Mode, quiet: bool = False) -> None:
        self.mode = mode
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._live: Progress | None = None

    @contextmanager
    def stage(self, name: str, what: str = "") -> Iterator[Stage]:
        """Show a stage from start to end; a stage that fails leaves its last state on the screen."""
        self._event("stage_started", name, what=what)
        if self.mode == "live":
            with _bar(self._console) as self._live:
                task = self._live.add_task(name, total=None, detail=what)
                stage = Stage(self, name, task)
                try:
                    yield stage
                finally:
                    self._live.stop()
                    self._live = None
        else:
            if what:
                self._line(f"{name}: {what}")
            stage = Stage(self, name, None)
            yield stage
        seconds = time.monotonic() - stage.started
        self._event("stage_finished", name, seconds=round(seconds, 1), summary=stage.summary)
        self._line(f"✓ {name} ({human_time(seconds)}){': ' + stage.summary if stage.summary else ''}")

    def skipped(self, name: str, reason: str) -> None:
        self._event("stage_skipped", name, reason=reason)
        self._line(f"· {name}: skipped, {reason}")

    def note(self, text: str) -> None:
        self._event("note", None, text=text)
        self._line(f"  {text}")

    def result(self, lines: list[str], **values: Any) -> None:
        """The run's result: `lines` on stdout, or one JSON event with `values`."""
        if self.mode == "json":
            self._event("result", None, **values)
        else:
            print("\n".join(lines), flush=True)

    def _line(self, text: str) -> None:
        if self.mode != "json":
            self._console.print(text, markup=False, soft_wrap=True)

    def _event(self, event: str, stage: str | None, **values: Any) -> None:
        if self.mode == "json":
            body = {"event": event, **({"stage": stage} if stage else {}), **values}
            print(json.dumps(body, ensure_ascii=False), flush=True)

    def _show_update(
        self,
        stage: Stage,
        now: float,
        done: float,
        total: float,
        unit: str,
        left: float | None,
        metrics: dict[str, float | str],
    ) -> None:
        detail = "  ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in metrics.items())
        remaining = f"{human_time(left)} left" if left is not None else ""
        if self.mode == "live" and self._live is not None and stage._task is not None:
            text = "  ".join(part for part in (f"{_number(done)}/{_number(total)} {unit}", detail, remaining) if part)
            self._live.update(stage._task, completed=done, total=total, detail=text)
            return
        if now - stage._last_line < _PLAIN_INTERVAL and done < total:
            return
        stage._last_line = now
        left_value = None if left is None else round(left, 1)
        self._event("progress", stage.name, done=done, total=total, unit=unit, seconds_left=left_value, **metrics)
        parts = (f"  {stage.name} {_number(done)}/{_number(total)} {unit}", detail, remaining)
        self._line("  ".join(part for part in parts if part))


def human_time(seconds: float) -> str:
    """75 → '1 min 15 s'."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
