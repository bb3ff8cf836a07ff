"""Tensors that several processes hold a part of each (FSDP's DTensor), and their whole form in files."""

from __future__ import annotations

from typing import Any

import torch


def whole(value: Any) -> Any:
    """The same structure with every sharded tensor gathered. All processes must call it, in the same order."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def like(tensor: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """A whole tensor, divided as the pattern is; every process must hold the same values."""
    if not hasattr(pattern, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh: Any = pattern
    return distribute_tensor(tensor.to(mesh.device), mesh.device_mesh, mesh.placements, src_data_rank=None)


def shard(model: Any) -> Any:
    """FSDP: each decoder layer is gathered when it computes, and is held in parts otherwise."""
    from torch.distributed.fsdp import fully_shard

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in inner.get_decoder().layers:
        fully_shard(layer)
    fully_shard(model)
    model._is_accelerate_prepared = True  # accelerate would wrap it once more, in DDP
    return model
