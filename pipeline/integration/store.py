"""The model shelf: what the app ships. A model gets there whole or not at all, metadata last."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import BaseModel, Run
from pipeline.data.tools import load_vocabulary

_CONTEXT = 2048  # tokens: what the app asks its runtime for

METADATA = "model-metadata.json"


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
        "file_size_mb": round(export["bytes"] / 1e6, 1),
        "compatible_platforms": ["macOS", "iOS", "Android"],
        "recommended_context_length": _CONTEXT,
        "supported_tools": list(load_vocabulary().names),
        "sha256": export["sha256"],
        "run_id": run.run_id,
        "runtimes": list(base.runtimes),
    }


def promote(
    model: Path, mmproj: Path | None, metadata: dict[str, Any], models_dir: Path, base: str
) -> tuple[Path, Path | None]:
    """Put the files under their names for the app and write the metadata; returns the model's and mmproj's path."""
    models_dir.mkdir(parents=True, exist_ok=True)
    target = models_dir / f"custom-dnd-{base}.gguf"
    _place(model, target)
    projector = models_dir / f"custom-dnd-{base}-mmproj.gguf" if mmproj else None
    if mmproj and projector:
        _place(mmproj, projector)
    files.write_json(models_dir / METADATA, metadata)
    return target, projector


def _place(source: Path, target: Path) -> None:
    """Hard link where the disk allows it: a promoted model costs no second copy, and a link is never half written."""
    with files.atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
