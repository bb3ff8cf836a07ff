"""Gather what a run has left and write its report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import Run
from pipeline.validation.report import page, replies, short


def write_report(
    run: Run,
    reasons: Sequence[str] | None,
    *,
    title: str,
    lineage: Mapping[str, str],
    command: str = "pnpm run train",
    largest: float = 2e9,
    how_to: str = "",
) -> Path:
    """Write report.html, summary.md and junit.xml into the run's validation folder; returns the page's path.

    `reasons` are the gate's: empty where it passed, None where it was not asked. Needs validation.json,
    generations.jsonl and dataset.jsonl; losses, parity, the choice of quantisation and file sizes
    are shown where the run has them; `how_to` tells what the app needs.
    """
    result = files.read_json(run.validation / "validation.json")
    shown = replies.read(run.validation / "generations.jsonl", run.data / "dataset.jsonl")
    parity = run.export / "parity.json"
    text = page.page(
        title,
        result,
        reasons,
        shown,
        _steps(run.training / "metrics.jsonl"),
        files.read_json(parity) if parity.is_file() else None,
        {path.stem.removeprefix("model-"): path.stat().st_size for path in sorted(run.export.glob("model-*.gguf"))},
        largest,
        {"run": run.run_id, **lineage, **_outputs(run)},
        command,
        _choice(run),
        how_to,
    )
    files.write_text(run.validation / "report.html", text)
    files.write_text(run.validation / "summary.md", short.markdown(title, result, reasons))
    files.write_text(run.validation / "junit.xml", short.junit(result, reasons, shown))
    return run.validation / "report.html"


def _steps(metrics: Path) -> list[dict[str, Any]]:
    if not metrics.is_file():
        return []
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]


def _choice(run: Run) -> dict[str, Any] | None:
    """What `--quant auto` chose among; it stands in the manifest alone."""
    facts = run.manifest()["stages"].get("export", {}).get("facts", {})
    choice: dict[str, Any] | None = facts.get("choice")
    return choice


def _outputs(run: Run) -> dict[str, str]:
    """Digest of each stage's outputs, as the manifest has them."""
    return {
        name: f"sha256 {digest}"
        for stage in run.manifest()["stages"].values()
        for name, digest in stage["outputs"].items()
        if not name.startswith("validation/")
    }
