"""The trained model's own numbers: the merged checkpoint computed by transformers, in fp32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pipeline import files
from pipeline.errors import ExportError
from pipeline.export.merge import tensor_slots
from pipeline.language_model import TOWERS, load


class Compared(Protocol):
    """A sequence of token ids, and the positions whose next-token logits are wanted."""

    @property
    def ids(self) -> tuple[int, ...]: ...

    @property
    def positions(self) -> list[int]: ...


def language_model(checkpoint: Path) -> Any:
    """The language model of a checkpoint in fp32, towers for images and sound left out. Raises ExportError."""
    require_memory(checkpoint)
    model, missing = load(checkpoint, dtype=torch.float32, attn_implementation="sdpa")
    if missing:
        raise ExportError(
            f"the merged checkpoint lacks {len(missing)} tensors: {', '.join(missing[:5])}",
            where=str(checkpoint),
            fix="fetch the base again; this transformers may not know its names",
        )
    return model.eval()


def require_memory(checkpoint: Path) -> None:
    """Raise ExportError unless the checkpoint's language model fits into memory in fp32."""
    import psutil

    spoken = [slot for slot in tensor_slots(checkpoint) if not TOWERS.search(slot.name)]
    needed = 4 * sum(math.prod(slot.shape) for slot in spoken)
    free = psutil.virtual_memory().available
    if needed > free:
        raise ExportError(
            f"the proof needs {files.human_size(needed)} of memory for the trained model in fp32, "
            f"{files.human_size(free)} are free",
            where=str(checkpoint),
            fix="close other programs, or choose a smaller --base; the exported files are kept",
        )


def trained_logits(checkpoint: Path, sequences: list[Any], threads: int = 0) -> Iterator[np.ndarray]:
    """fp32 logits of the checkpoint, a sequence (see `Compared`) at a time: [compared positions, vocabulary]."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        model = language_model(checkpoint)
        for sequence in sequences:
            with torch.inference_mode():
                ids, keep = torch.tensor([sequence.ids]), torch.tensor(sequence.positions)
                logits = model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits[0]
            yield logits.numpy()
    finally:
        torch.set_num_threads(before)
