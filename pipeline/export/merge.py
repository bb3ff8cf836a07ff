"""Add an adapter into the base checkpoint's own tensors.

The base's files are copied piece by piece, and the tensors that the adapter changes are changed on their way, in place:
every tensor keeps its name, order, dtype and shape, and the safetensors headers stay byte for byte the base's.
Saving a model from memory instead would drop what the library does not instantiate (the shared-KV layers of
Gemma 3n) and would need the whole model in memory; here the peak is one tensor and its delta.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from pipeline import files
from pipeline.errors import ExportError

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PIECE = 1 << 23  # bytes
_WRAPPERS = {"base_model", "model", "language_model"}
Change = Callable[[torch.Tensor], torch.Tensor]  # the base's tensor → the new one in fp32


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

    Arithmetic is fp32, rounded once to the base's dtype. A folder without adapter_config.json holds whole tensors, from
    full fine-tuning: they take the base's place. Raises ExportError when a tensor fits none of the base's.
    """
    slots = tensor_slots(base)
    with safe_open(adapter / "adapter_model.safetensors", "pt") as weights:
        changes = (
            _deltas(adapter, slots, weights)
            if (adapter / "adapter_config.json").is_file()
            else _whole(adapter, slots, weights)
        )
        files.require_free_space(out.parent, sum(path.stat().st_size for path in base.iterdir()), "the merged model")
        with files.atomic_path(out) as temporary:
            temporary.mkdir()
            for path in sorted(base.iterdir()):
                here = {slot: change for slot, change in changes.items() if slot.file == path}
                _copy(path, temporary / path.name, here)
    return len(changes)


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


def _deltas(adapter: Path, slots: list[Slot], weights: Any) -> dict[Slot, Change]:
    """What each LoRA pair adds to which tensor."""
    scale = _scale(adapter)
    changes: dict[Slot, Change] = {}
    names = set(weights.keys())
    for a in sorted(name for name in names if ".lora_A." in name):
        b = a.replace(".lora_A.", ".lora_B.")
        shape = (weights.get_slice(b).get_shape()[0], weights.get_slice(a).get_shape()[1]) if b in names else None
        slot = _fitting(a.replace(".lora_A.weight", ".weight"), shape, slots, adapter)
        changes[slot] = partial(_add, weights, a, b, scale)
    if len(changes) * 2 != len(names):
        extra = sorted(name for name in names if ".lora_A." not in name and ".lora_B." not in name)
        raise ExportError(
            f"the adapter holds tensors that are no LoRA pair: {', '.join(extra[:5]) or 'two pairs for one tensor'}",
            where=str(adapter),
            fix="train it again",
        )
    return changes


def _whole(adapter: Path, slots: list[Slot], weights: Any) -> dict[Slot, Change]:
    """What takes the place of which tensor."""
    changes: dict[Slot, Change] = {}
    for name in sorted(weights.keys()):
        slot = _fitting(name, tuple(weights.get_slice(name).get_shape()), slots, adapter)
        changes[slot] = partial(_replace, weights, name)
    return changes


def _fitting(name: str, shape: tuple[int, ...] | None, slots: list[Slot], adapter: Path) -> Slot:
    target = canonical(name)
    found = [slot for slot in slots if canonical(slot.name) == target]
    if len(found) != 1 or shape != found[0].shape:
        raise ExportError(
            f"the adapter's change of {target!r} with shape {shape} fits {len(found)} tensors of the base"
            + (f" (shape {found[0].shape})" if found else ""),
            where=str(adapter),
            fix="merge an adapter only into the base it was trained on",
        )
    return found[0]


def _scale(adapter: Path) -> float:
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
    return float(config["lora_alpha"] / rank)


def _add(weights: Any, a: str, b: str, scale: float, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float().addmm_(weights.get_tensor(b).float(), weights.get_tensor(a).float(), alpha=scale)


def _replace(weights: Any, name: str, tensor: torch.Tensor) -> torch.Tensor:
    trained: torch.Tensor = weights.get_tensor(name)
    return trained.to(torch.float32, copy=True)


def _copy(source: Path, target: Path, changes: dict[Slot, Change]) -> None:
    """Write the file once, from front to back: what no change touches is passed on in pieces."""
    if source.is_dir():
        shutil.copytree(source, target)
        return
    with source.open("rb") as old, target.open("wb") as new:
        for slot in sorted(changes, key=lambda slot: slot.start):
            _pass_on(old, new, slot.start - old.tell())
            new.write(_changed(old, slot, changes[slot]))
        _pass_on(old, new, source.stat().st_size - old.tell())


def _pass_on(old: BinaryIO, new: BinaryIO, length: int) -> None:
    while length > 0:
        piece = old.read(min(length, _PIECE))
        if not piece:
            raise ExportError("the base changed while it was merged", where=str(old.name), fix="run again")
        new.write(piece)
        length -= len(piece)


def _changed(old: BinaryIO, slot: Slot, change: Change) -> bytearray:
    if slot.dtype not in _DTYPES:
        raise ExportError(
            f"{slot.name} has dtype {slot.dtype}: a quantised base cannot take an adapter exactly",
            where=str(slot.file),
            fix="merge into the base in bf16, f16 or f32",
        )
    raw = bytearray(slot.end - slot.start)
    old.readinto(raw)  # type: ignore[attr-defined]
    tensor = torch.frombuffer(raw, dtype=_DTYPES[slot.dtype]).view(slot.shape)
    exact = change(tensor)
    tensor.copy_(exact)
    if not exact.abs_().amax() <= torch.finfo(tensor.dtype).max:  # NaN is caught too
        raise ExportError(
            f"{slot.name} leaves the range of {slot.dtype} when the adapter is added",
            where=str(slot.file),
            fix="train with a lower learning rate",
        )
    return raw
