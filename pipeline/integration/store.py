"""The model shelf: what the app ships. A model gets there whole or not at all, metadata last."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import BaseModel, Run
from pipeline.data.tools import load_vocabulary
from pipeline.errors import ValidationError

_CONTEXT = 2048  # tokens: what the app asks its runtime for

METADATA = "model-metadata.json"
PAPERS = {"bill": ".cdx.json", "statement": ".provenance.json"}  # beside the model, named after it
VERSIONS = "versions"  # beside the shipped files: one folder for each model that was shipped before
_KEPT = 3
_SHORT = 12  # letters of a digest that name a version


def metadata_for(run: Run, base: BaseModel, quantisation: str, result: dict[str, Any]) -> dict[str, Any]:
    """What the app may know about the model. The date is that of the training, so a repeated promotion changes nothing."""
    stages = run.manifest()["stages"]
    training, export = stages["training"]["facts"], stages["export"]["facts"]
    trained_at = (run.training / "adapter" / "adapter_model.safetensors").stat().st_mtime
    return {
        "model_name": f"custom-dnd-{base.name}",
        "base_model": base.name,
        "training_date": datetime.fromtimestamp(trained_at, UTC).date().isoformat(),
        "training_steps": training["steps"],
        "final_loss": round(training["final_loss"], 4),
        "validation_accuracy": round(result["tool_choice_accuracy"]["value"], 4),
        "tool_call_accuracy": round(result["tool_call_accuracy"]["value"], 4),
        "baseline_tool_call_accuracy": round(result["baseline"]["tool_call_accuracy"]["value"], 4),
        "quantization_level": quantisation,
        "imatrix_chunks": export["imatrix_chunks"],
        "mmproj": _projector(stages["export"]),
        "file_size_mb": round(export["bytes"] / 1e6, 1),
        "compatible_platforms": ["macOS", "iOS", "Android"],
        "recommended_context_length": _CONTEXT,
        "supported_tools": list(load_vocabulary().names),
        "sha256": export["sha256"],
        "run_id": run.run_id,
        "runtimes": list(base.runtimes),
    }


def _projector(export: dict[str, Any]) -> dict[str, str] | None:
    name = export["facts"]["mmproj"]
    return {"sha256": export["outputs"][f"export/{name}"]} if name else None


def promote(
    model: Path,
    mmproj: Path | None,
    metadata: dict[str, Any],
    models_dir: Path,
    base: str,
    papers: Mapping[str, bytes] | None = None,
) -> tuple[Path, Path | None]:
    """Put the files under their names for the app and write the metadata; returns the model's and mmproj's path.

    What was there before is kept under versions/ first; equal bytes are left as they are. `papers` are the contents of
    the files of PAPERS; those that are not given are removed, as they would speak of another model.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    before = current(models_dir)
    if before and before["sha256"] != metadata["sha256"]:
        _keep(models_dir, before)
    target, projector = names(models_dir, f"custom-dnd-{base}")
    files.link_or_copy(model, target)
    if mmproj:
        files.link_or_copy(mmproj, projector)
    else:
        projector.unlink(missing_ok=True)
    for paper, path in _papers(models_dir, f"custom-dnd-{base}").items():
        if papers and paper in papers:
            files.write_bytes(path, papers[paper])
        else:
            path.unlink(missing_ok=True)
    files.write_json(models_dir / METADATA, metadata)
    _drop_versions(models_dir, metadata)
    return target, projector if mmproj else None


def current(models_dir: Path) -> dict[str, Any] | None:
    """The promoted model's metadata, or None where nothing was promoted or its file is gone."""
    if not (models_dir / METADATA).is_file():
        return None
    metadata: dict[str, Any] = files.read_json(models_dir / METADATA)
    return metadata if names(models_dir, metadata["model_name"])[0].is_file() else None


def model_path(models_dir: Path, metadata: dict[str, Any]) -> Path:
    """Where a promoted model's file lies."""
    return names(models_dir, metadata["model_name"])[0]


def versions(models_dir: Path) -> list[dict[str, Any]]:
    """Metadata of the kept models, the one put away last first."""
    found = sorted(
        (models_dir / VERSIONS).glob(f"*/{METADATA}"), key=lambda path: path.stat().st_mtime_ns, reverse=True
    )
    return [files.read_json(path) for path in found]


def rollback(models_dir: Path, version: str | None = None) -> dict[str, Any]:
    """Ship a kept model again, the newest one or the one whose run id or digest begins with `version`.

    The model shipped now is kept in its place. Returns the metadata of the model that is shipped from now on; raises
    ValidationError when there is no such model or its bytes have changed.
    """
    kept = versions(models_dir)
    chosen = next((item for item in kept if version is None or _is_called(item, version)), None)
    if chosen is None:
        known = ", ".join(f"{item['run_id']} ({item['sha256'][:_SHORT]})" for item in kept) or "none is kept"
        raise ValidationError(
            f"there is no earlier model {version or ''}".rstrip(),
            where=str(models_dir / VERSIONS),
            fix=f"known: {known}",
        )
    folder = models_dir / VERSIONS / chosen["sha256"][:_SHORT]
    model, mmproj = names(folder, chosen["model_name"])
    if not model.is_file() or files.sha256_file(model) != chosen["sha256"]:
        raise ValidationError(
            "the kept model is not what it was",
            where=str(model),
            fix="train again: the same inputs give the same bytes",
        )
    base = chosen["model_name"].removeprefix("custom-dnd-")
    promote(model, mmproj if mmproj.is_file() else None, chosen, models_dir, base, _read_papers(folder, model.stem))
    return chosen


def _keep(models_dir: Path, metadata: dict[str, Any]) -> None:
    """Link the shipped files into versions/, if they are still those of `metadata`.

    They are not after a promotion that was cut off: it had kept them already. The model is replaced first, so where it
    is the old one, its projector and papers are too.
    """
    folder = models_dir / VERSIONS / metadata["sha256"][:_SHORT]
    name = metadata["model_name"]
    model = model_path(models_dir, metadata)
    if not model.is_file() or files.sha256_file(model) != metadata["sha256"]:
        return
    for path in (*names(models_dir, name), *_papers(models_dir, name).values()):
        if path.is_file():
            files.link_or_copy(path, folder / path.name)
    files.write_json(folder / METADATA, metadata)


def _drop_versions(models_dir: Path, shipped: dict[str, Any]) -> None:
    """Drop the shipped model from versions/, and the oldest ones beyond the limit: last, as it may have come from there."""
    files.remove(models_dir / VERSIONS / shipped["sha256"][:_SHORT])
    for old in versions(models_dir)[_KEPT:]:
        files.remove(models_dir / VERSIONS / old["sha256"][:_SHORT])


def _is_called(metadata: dict[str, Any], version: str) -> bool:
    return bool(metadata["run_id"] == version or metadata["sha256"].startswith(version))


def papers(models_dir: Path, metadata: dict[str, Any]) -> dict[str, Path]:
    """Where the shipped model's bill of materials and provenance statement lie."""
    return _papers(models_dir, metadata["model_name"])


def _papers(folder: Path, name: str) -> dict[str, Path]:
    return {paper: folder / f"{name}{suffix}" for paper, suffix in PAPERS.items()}


def _read_papers(folder: Path, name: str) -> dict[str, bytes]:
    return {paper: path.read_bytes() for paper, path in _papers(folder, name).items() if path.is_file()}


def names(folder: Path, name: str) -> tuple[Path, Path]:
    """A model's and its projector's place in a folder."""
    return folder / f"{name}.gguf", folder / f"{name}-mmproj.gguf"
