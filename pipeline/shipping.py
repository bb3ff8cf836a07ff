"""From figures to the shelf: what a model is measured against, the report, the gate, and what the app is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import files, gguf_file
from pipeline.artifacts import BaseModel, Dataset, Run
from pipeline.config import Config
from pipeline.integration import store

REPORT = ("validation/report.html", "validation/summary.md", "validation/junit.xml")


def rival(models_dir: Path, run: Run) -> tuple[Path | None, str]:
    """The shipped model that this run's is measured against, and its digest; (None, "") where there is none.

    A run whose own model is the shipped one keeps the digest it was measured against, so that nothing is done again.
    """
    shipped = store.current(models_dir)
    stages = run.manifest()["stages"]
    if shipped is None:
        return None, ""
    if shipped["sha256"] == stages.get("export", {}).get("facts", {}).get("sha256"):
        return None, str(stages.get("validation", {}).get("facts", {}).get("promoted_sha256", ""))
    return store.model_path(models_dir, shipped), str(shipped["sha256"])


def exported(run: Run) -> dict[str, Any]:
    """The export's facts: `quantization`, `mmproj`, `mmproj_reason`, `choice`, …"""
    facts: dict[str, Any] = run.manifest()["stages"]["export"]["facts"]
    return facts


def quantisation(run: Run) -> str:
    """The kind that is shipped, `auto` resolved."""
    return str(exported(run)["quantization"])


def how_quantised(run: Run) -> str:
    """The kind with what it rests on: the importance matrix, and the reason where it was chosen."""
    facts = exported(run)
    chunks, choice = facts["imatrix_chunks"], facts["choice"]
    matrix = f", importance matrix of {chunks} × 512 training tokens" if chunks else ""
    return f"{facts['quantization']}{matrix}" + (f"; chosen: {choice['reason']}" if choice else "")


def model(run: Run) -> Path:
    return run.export / f"model-{quantisation(run)}.gguf"


def parity(run: Run) -> dict[str, Any] | None:
    path = run.export / "parity.json"
    content: dict[str, Any] | None = files.read_json(path) if path.is_file() else None
    return content


def settled(config: Config, base: str) -> Config:
    """The settings with the limits that were left out: the base's own."""
    from pipeline.bases import catalog

    own = catalog.limits(base)
    export = config.export.model_copy(update={"max_size_gb": config.export.max_size_gb or own.file_gb})
    gate = config.gate.model_copy(update={"max_memory_gb": config.gate.max_memory_gb or own.memory_gb})
    return config.model_copy(update={"export": export, "gate": gate})


def largest_file(config: Config, base: str) -> float:
    """Bytes that the shipped file may have."""
    from pipeline.bases import catalog

    return (config.export.max_size_gb or catalog.limits(base).file_gb) * 1e9


def report(run: Run, config: Config, base: BaseModel, result: Mapping[str, Any]) -> list[str]:
    """Write the report with the gate's word in it; returns the gate's reasons against the model."""
    from pipeline.validation import gate
    from pipeline.validation.report import write_report

    config = settled(config, base.name)
    target, projector = store.names(config.models_dir, f"custom-dnd-{base.name}")
    found = gate.reasons(result, config.gate, config.export, parity(run))
    write_report(
        run,
        found if config.gate.enabled else None,
        title=f"custom-dnd-{base.name}",
        lineage={
            "base": f"{base.name} ({base.licence})",
            "base digest": base.digest,
            "origin": base.origin,
            "training data": str(config.data.folder),
            "seed": str(config.seed),
            "quantisation": how_quantised(run),
            "projector": exported(run)["mmproj_reason"],
        },
        command=f"pnpm run train --preset {config.preset} --seed {config.seed} --base {base.name}",
        largest=largest_file(config, base.name),
        how_to=how_to(target, projector if exported(run)["mmproj"] else None, model(run)),
    )
    return found


def how_to(model: Path, projector: Path | None, made: Path) -> str:
    """What a person does to have the app use the model at `model`; `made` is the file that is or will be there."""
    from pipeline.integration import cactus

    return cactus.instructions(cactus.config(model, projector), gguf_file.architecture(made))


def require_gate(run: Run, config: Config, base: BaseModel, result: Mapping[str, Any]) -> None:
    """Raise GateRefused (exit 3) with every reason; nothing in the app's folder has changed then."""
    from pipeline.validation import gate

    config = settled(config, base.name)
    gate.require(result, config.gate, run.folder, config.export, parity(run))


def require_runtime(runtime: str | None, gguf: Path) -> None:
    """Before the dear work: raise ExportError when the wanted runtime cannot load files such as `gguf`."""
    from pipeline.integration import runtimes

    if runtime:
        runtimes.require(runtime, gguf_file.architecture(gguf), gguf.stat().st_size)


def ship(
    run: Run, base: BaseModel, result: dict[str, Any], models_dir: Path, facts: dict[str, Any]
) -> tuple[Path, Path | None, dict[str, Any]]:
    """Put the model on the shelf with everything that the app needs; returns model, mmproj and metadata.

    `facts` are what the run rests on (see pipeline.journey.describe), for the papers beside the model.
    """
    from pipeline.integration import cactus, types
    from pipeline.provenance import papers

    metadata = store.metadata_for(run, base, quantisation(run), result)
    parent = run.manifest()["stages"]["training"]["facts"].get("parent")
    if parent:
        metadata |= {"parent_run_id": parent["run_id"], "parent_adapter_sha256": parent["adapter_sha256"]}
    name = exported(run)["mmproj"]
    mmproj = run.export / name if name else None
    paperwork = papers.write(run, base, facts, metadata, mmproj)
    target, projector = store.promote(model(run), mmproj, metadata, models_dir, base.name, paperwork)
    cactus.write(models_dir, cactus.config(target, projector))
    types.write(models_dir)
    return target, projector, metadata


def gguf_metadata(run: Run, base: BaseModel, dataset: Dataset) -> dict[str, Any]:
    """Standard general.* keys; nothing here varies between two runs with equal inputs."""
    return {
        "general.name": f"custom-dnd-{base.name}",
        "general.version": run.run_id,
        "general.finetune": "dungeon-master",
        "general.basename": base.name,
        "general.description": "A Dungeon Master that calls tools as [roll: perception]",
        "general.license": base.licence,
        "general.base_models": [{"name": base.name, "version": base.digest}],
        "general.datasets": [{"name": "training_data", "version": dataset.digest}],
    }
