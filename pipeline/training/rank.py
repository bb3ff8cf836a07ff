"""What one of several training processes does, from joining the others to the adapter."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import Adapter, BaseModel, Dataset
from pipeline.config import TrainingConfig
from pipeline.errors import PipelineError, UsageError
from pipeline.progress import Reporter, Stage
from pipeline.training import distributed, loop
from pipeline.training.distributed import Place


@dataclass(frozen=True)
class Task:
    """What is to be trained. Only rank 0 has a dataset and folders to read and write; `threads` are one process's."""

    base: BaseModel
    config: TrainingConfig
    seed: int
    threads: int
    dataset: Dataset | None = None
    out: Path | None = None
    start: Path | None = None
    kernels: Path | None = None


class Relay(Stage):
    """A stage whose words are shown by the process that watches."""

    def __init__(self, pipe: Connection | None) -> None:
        super().__init__(Reporter("plain", quiet=True), "training", None)
        self._pipe = pipe

    def update(self, done: float, total: float, unit: str = "step", **metrics: float | str) -> None:
        if self._pipe:
            self._pipe.send(("update", (done, total, unit), metrics))

    def note(self, text: str) -> None:
        if self._pipe:
            self._pipe.send(("note", text))


def work(
    place: Place, task: Task, stage: Stage, interrupted: Callable[[], bool] | None = None, store: Any = None
) -> Adapter | None:
    """Train as one of the ranks; rank 0 gives the adapter."""
    with distributed.joined(place, task.threads, store), tempfile.TemporaryDirectory(prefix="dm-forge-") as scratch:
        _require_same(task)
        out = task.out or Path(scratch) / "training"
        trainer = loop.fit(
            _shared_dataset(task, Path(scratch)),
            task.base,
            task.config,
            seed=task.seed,
            threads=task.threads,
            out=out,
            stage=stage,
            start=task.start,
            kernels=task.kernels,
            interrupted=interrupted,
        )
        return loop.finish(trainer, out) if distributed.rank() == 0 else None


def _require_same(task: Task) -> None:
    own = {"base": task.base.digest, "seed": task.seed, **task.config.model_dump(mode="json")}
    wanted = distributed.agree(own)
    if own != wanted:
        names = ", ".join(name for name in own if own[name] != wanted[name])
        raise UsageError(
            f"rank {distributed.rank()} was started with another {names} than rank 0",
            where="--nnodes",
            fix="start the same commit with the same command on every machine; name the base with --base",
        )


def _shared_dataset(task: Task, scratch: Path) -> Dataset:
    content = distributed.agree(task.dataset.conversations.read_bytes() if task.dataset else None)
    if task.dataset:
        return task.dataset
    path = scratch / "dataset.jsonl"
    path.write_bytes(content)
    return Dataset(path, path, files.sha256_bytes(content))


def child(place: Place, task: Task, pipe: Connection, stop: Any, parent: int) -> None:
    """The body of a process that launch.py starts. Ctrl-C is the parent's; when that dies, this ends after its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stage = Relay(pipe if place.rank == 0 else None)
        result = work(place, task, stage, lambda: stop.is_set() or os.getppid() != parent)
    except KeyboardInterrupt:
        pipe.send(("interrupted",))
    except PipelineError as error:
        pipe.send(("fault", type(error).__name__, error.what, error.where, error.fix))
        sys.exit(1)
    except Exception:
        pipe.send(("crash", traceback.format_exc()))
        sys.exit(1)
    else:
        pipe.send(("done", result))
