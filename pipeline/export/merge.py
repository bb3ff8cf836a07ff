"""Add an adapter into the base checkpoint's own tensors.

The base's files are copied and only the tensors that the adapter changes are written over, at their own offsets:
every tensor keeps its name, order, dtype and shape, and the safetensors headers stay byte for byte the base's.
Saving a model from memory instead would drop what the library does not instantiate (the shared-KV layers of
Gemma 3n) and would need the whole model in memory; here the peak is one tensor and its delta.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from pipeline import files
from pipeline.errors import ExportError

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WRAPPERS = {"base_model", "model", "language_model"}


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies: a byte range of one safetensors file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def merge(base: Path, adapter: Path, out: Path) -> int:
    """Write the base with the adapter added to `out`; returns the number of tensors changed.

    Arithmetic is fp32, rounded once to the base's dtype. Raises ExportError when a delta fits no base tensor.
    """
    settings = _settings(adapter)
    slots = tensor_slots(base)
    deltas = _match(adapter, slots, settings["target"])
    files.require_free_space(out.parent, sum(path.stat().st_size for path in base.iterdir()), "the merged model")
    with files.atomic_path(out) as temporary:
        shutil.copytree(base, temporary)
        with safe_open(adapter / "adapter_model.safetensors", "pt") as weights:
            for slot, (a, b) in deltas.items():
                delta = weights.get_tensor(b).float() @ weights.get_tensor(a).float()
                _add(temporary / slot.file.name, slot, delta.mul_(settings["scale"]))
    return len(deltas)


def tensor_slots(folder: Path) -> list[Slot]:
    """Every tensor of every safetensors file of a checkpoint, in file and offset order."""
    slots = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = (8 + length + offset for offset in entry["data_offsets"])
                slots.append(Slot(path, name, entry["dtype"], tuple(entry["shape"]), start, end))
    if not slots:
        raise ExportError(f"the folder {str(folder)!r} holds no safetensors tensors", fix="give a checkpoint folder")
    return sorted(slots, key=lambda slot: (slot.file.name, slot.start))


def canonical(name: str) -> str:
    """A tensor's name without the wrappers that differ between a checkpoint, its text-only class and PEFT."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _settings(adapter: Path) -> dict[str, float | str]:
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    unsupported = [
        key for key in ("rank_pattern", "alpha_pattern", "use_dora", "modules_to_save", "lora_bias") if config.get(key)
    ]
    if config.get("peft_type") != "LORA" or unsupported:
        raise ExportError(
            f"this adapter cannot be merged exactly: type {config.get('peft_type')}, {', '.join(unsupported) or 'no extras'}",
            where=str(adapter / "adapter_config.json"),
            fix="train a plain LoRA adapter",
        )
    rank = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
    return {"scale": config["lora_alpha"] / rank, "target": str(adapter)}


def _match(adapter: Path, slots: list[Slot], where: float | str) -> dict[Slot, tuple[str, str]]:
    by_name: dict[str, list[Slot]] = {}
    for slot in slots:
        by_name.setdefault(canonical(slot.name), []).append(slot)
    deltas: dict[Slot, tuple[str, str]] = {}
    with safe_open(adapter / "adapter_model.safetensors", "pt") as weights:
        names = set(weights.keys())
        for a in sorted(name for name in names if ".lora_A." in name):
            b = a.replace(".lora_A.", ".lora_B.")
            target = canonical(a.replace(".lora_A.weight", ".weight"))
            found = by_name.get(target, [])
            shape = (weights.get_slice(b).get_shape()[0], weights.get_slice(a).get_shape()[1]) if b in names else None
            if len(found) != 1 or shape != found[0].shape:
                raise ExportError(
                    f"the adapter's delta for {target!r} with shape {shape} fits {len(found)} tensors of the base"
                    + (f" (shape {found[0].shape})" if found else ""),
                    where=str(where),
                    fix="merge an adapter only into the base it was trained on",
                )
            deltas[found[0]] = (a, b)
        if len(deltas) * 2 != len(names):
            extra = sorted(names - {name for pair in deltas.values() for name in pair})
            raise ExportError(
                f"the adapter holds tensors that are no LoRA pair: {', '.join(extra[:5])}",
                where=str(where),
                fix="train it again",
            )
    return deltas


def _add(path: Path, slot: Slot, delta: torch.Tensor) -> None:
    if slot.dtype not in _DTYPES:
        raise ExportError(f"{slot.name} has dtype {slot.dtype}", where=str(path), fix="use a base in bf16, f16 or f32")
    with path.open("r+b") as file:
        file.seek(slot.start)
        raw = bytearray(file.read(slot.end - slot.start))
        tensor = torch.frombuffer(raw, dtype=_DTYPES[slot.dtype]).view(slot.shape)
        tensor.copy_(delta.add_(tensor))
        if not torch.isfinite(tensor).all():
            raise ExportError(
                f"{slot.name} leaves the range of {slot.dtype} when the adapter is added",
                where=str(path),
                fix="train with a lower learning rate",
            )
        file.seek(slot.start)
        file.write(raw)
