"""Checkpoints that are whole or absent, and the journal of steps that fits them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.training import tensorboard

_SEAL = "checkpoint.json"


@dataclass(frozen=True)
class Standing:
    """Where a run stands, besides weights and optimiser. `key` is the digest of everything the run depends on;
    `row_tokens` is what memory allowed where that was less than planned, else 0."""

    key: str
    step: int
    best_loss: float | None = None
    best_step: int = 0
    without_progress: int = 0
    stopped: str = ""
    row_tokens: int = 0

    def measured(self, loss: float) -> Standing:
        """The standing after a held-out measurement at this step."""
        if self.best_loss is None or loss < self.best_loss:
            return replace(self, best_loss=loss, best_step=self.step, without_progress=0)
        return replace(self, without_progress=self.without_progress + 1)


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"checkpoint-{step:06d}"


def seal(folder: Path, standing: Standing) -> None:
    """Write the standing and every file's digest: a folder without a fitting seal is no checkpoint."""
    digests = files.sha256_files((path for path in folder.rglob("*") if path.is_file()), folder)
    files.write_json(folder / _SEAL, {"standing": asdict(standing), "files": digests})


def standing_of(folder: Path) -> Standing | None:
    """The checkpoint's standing, or None when the folder is not a whole checkpoint."""
    try:
        content = files.read_json(folder / _SEAL)
        for name, digest in content["files"].items():
            if files.sha256_file(folder / name) != digest:
                return None
        return Standing(**content["standing"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def newest(checkpoints: Path, key: str) -> tuple[Path, Standing] | None:
    """The latest whole checkpoint of the run with this key."""
    for folder in sorted(checkpoints.glob("checkpoint-*"), reverse=True):
        standing = standing_of(folder)
        if standing is not None and standing.key == key:
            return folder, standing
    return None


def prune(checkpoints: Path, standing: Standing) -> None:
    """Keep the two newest up to this step and the best; remove the rest, and leavings of killed writers."""
    folders = sorted(checkpoints.glob("checkpoint-*"))
    mine = [folder for folder in folders if folder.name <= folder_of(checkpoints, standing.step).name]
    keep = {*mine[-2:], folder_of(checkpoints, standing.best_step)}
    for folder in folders:
        if folder not in keep:
            files.remove(folder)
    for leaving in checkpoints.glob(".*.tmp"):
        files.remove(leaving)


class Journal:
    """metrics.jsonl: one JSON object a step, on the disk before the next step begins; TensorBoard's file beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = path.with_name(tensorboard.NAME)
        self.entries: list[dict[str, Any]] = []

    def rewind(self, step: int) -> None:
        """Forget what came after `step` (a torn last line too), as the checkpoint knows nothing of it."""
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []
        self.entries = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if entry["step"] > step:
                break
            self.entries.append(entry)
        files.write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in self.entries))
        tensorboard.write(self.events, self.entries)

    def append(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        tensorboard.append(self.events, entry)

    def total(self, key: str) -> float:
        return float(sum(entry.get(key, 0) for entry in self.entries))

    def recent_loss(self, count: int = 10) -> float:
        losses = [entry["loss"] for entry in self.entries[-count:]]
        return sum(losses) / len(losses) if losses else float("nan")
