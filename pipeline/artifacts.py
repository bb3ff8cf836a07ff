"""What stages hand to one another, and where a run keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import files


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp, built: `binaries` holds the tools, `source` the tree with the converter and gguf-py."""

    binaries: Path
    source: Path
    commit: str
    build_flags: tuple[str, ...]

    def tool(self, name: str) -> Path:
        return self.binaries / name

    @property
    def kernels(self) -> Path | None:
        """The library that training on a CPU computes with, where this kind of machine and its compiler make one."""
        path = self.binaries / "dm-train"
        return path if path.is_file() else None

    @property
    def converter(self) -> Path:
        return self.source / "convert_hf_to_gguf.py"


@dataclass(frozen=True)
class BaseModel:
    """A verified local checkpoint in Hugging Face form: safetensors, config and the base's own tokenizer files."""

    name: str
    path: Path
    digest: str
    architecture: str
    licence: str
    multimodal: bool = False
    origin: str = ""
    runtimes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """`conversations` is JSON lines (see pipeline.data.dataset); `digest` covers every conversation and its split."""

    conversations: Path
    report: Path
    digest: str


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter folder. Losses are means in nats a supervised token; `sha256` is that of its weights."""

    path: Path
    sha256: str
    steps: int
    final_loss: float
    held_out_loss: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class StageRecord:
    """One stage in a manifest: done means that every output is there with this digest."""

    key: str
    outputs: dict[str, str]
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


class Run:
    """A run's folder. `manifest.json` is written last; "in the manifest with a matching digest" means done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest_path = folder / "manifest.json"

    @property
    def run_id(self) -> str:
        return self.folder.name

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def training(self) -> Path:
        return self.folder / "training"

    @property
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def validation(self) -> Path:
        return self.folder / "validation"

    def manifest(self) -> dict[str, Any]:
        if not self.manifest_path.exists():
            return {"run_id": self.run_id, "stages": {}}
        content: dict[str, Any] = files.read_json(self.manifest_path)
        return content

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        files.write_json(self.manifest_path, manifest)

    def record(self, stage: str, record: StageRecord) -> None:
        """Write a finished stage into the manifest. Call it after the outputs have their final names."""
        manifest = self.manifest()
        manifest["stages"][stage] = {
            "key": record.key,
            "outputs": record.outputs,
            "seconds": round(record.seconds, 1),
            "facts": record.facts,
        }
        self.write_manifest(manifest)

    def finished(self, stage: str, key: str) -> StageRecord | None:
        """The stage's record if its inputs are `key` and every output still has its digest, else None."""
        entry = self.manifest()["stages"].get(stage)
        if not entry or entry["key"] != key:
            return None
        for name, digest in entry["outputs"].items():
            path = self.folder / name
            if not path.is_file() or files.sha256_file(path) != digest:
                return None
        return StageRecord(entry["key"], entry["outputs"], entry["seconds"], entry["facts"])

    def adopt(self, stage: str, key: str, runs: Path) -> StageRecord | None:
        """Take a stage with the same key over from another run by hard links: the same inputs give the same bytes."""
        for other in sorted(runs.glob("*/manifest.json")):
            neighbour = Run(other.parent)
            if neighbour.folder == self.folder:
                continue
            record = neighbour.finished(stage, key)
            if record is None:
                continue
            for name in record.outputs:
                files.link_or_copy(neighbour.folder / name, self.folder / name)
            self.record(stage, record)
            return record
        return None
