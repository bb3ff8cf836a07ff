"""Going on from an earlier run's adapter: which one, whether it fits, and what is written down about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import BaseModel, Run
from pipeline.config import Config
from pipeline.errors import UsageError

_WEIGHTS = "training/adapter/adapter_model.safetensors"


@dataclass(frozen=True)
class Parent:
    """The run that a run goes on from, by its id and the sha256 of its adapter's weights."""

    run_id: str
    adapter_sha256: str

    def adapter(self, config: Config) -> Path:
        return (config.output_dir / self.run_id / _WEIGHTS).parent

    def facts(self) -> dict[str, str]:
        return asdict(self)


def find(config: Config, wanted: str) -> Parent:
    """`latest` is the last promoted run; anything else is a run's id. Raises UsageError."""
    run_id = _latest(config) if wanted == "latest" else wanted
    record = _manifest(config, run_id)["stages"].get("training")
    weights = config.output_dir / run_id / _WEIGHTS
    if record is None or not weights.is_file():
        raise UsageError(
            f"run {run_id!r} has no trained adapter here", where=str(weights), fix="train without --from first"
        )
    return Parent(run_id, record["facts"]["adapter_sha256"])


def parent_of(config: Config, run_id: str) -> Parent | None:
    """What that run itself went on from."""
    record = _manifest(config, run_id)["stages"].get("training", {})
    facts = record.get("facts", {}).get("parent")
    return Parent(**facts) if facts else None


def require_fit(config: Config, parent: Parent, base: BaseModel) -> None:
    """Before the dear work: the same base and the same LoRA, and the very weights. Raises UsageError with all faults."""
    manifest, faults = _manifest(config, parent.run_id), []
    if "inputs" not in manifest:
        faults.append("it was never promoted")
    else:
        before = manifest["inputs"]["base"]
        if before["digest"] != base.digest:
            faults.append(f"it was trained on the base {before['name']}, this run trains {base.name}")
        faults += _lora_faults(manifest["config"]["training"], config)
    weights = config.output_dir / parent.run_id / _WEIGHTS
    if not weights.is_file() or files.sha256_file(weights) != parent.adapter_sha256:
        faults.append("its adapter is gone or has changed since it was trained")
    if faults:
        raise UsageError(
            f"run {parent.run_id} cannot be gone on from: {'; '.join(faults)}",
            where="--from",
            fix="train without --from, or with that run's base and training.lora",
        )


def _lora_faults(before: dict[str, Any], config: Config) -> list[str]:
    if "full" in (before["method"], config.training.method):
        return ["full fine-tuning has no adapter"]
    own, its = config.training.lora.model_dump(mode="json"), {"depth": 1.0, **before["lora"]}
    return [
        f"its LoRA has {name} {its[name]}, this run wants {own[name]}"
        for name in ("rank", "alpha", "targets", "depth")
        if its[name] != own[name]
    ]


def _latest(config: Config) -> str:
    path = config.models_dir / "model-metadata.json"
    if not path.is_file():
        raise UsageError("no model has been promoted yet", where="--from latest", fix="train without --from first")
    return str(files.read_json(path)["run_id"])


def _manifest(config: Config, run_id: str) -> dict[str, Any]:
    return Run(config.output_dir / run_id).manifest()
