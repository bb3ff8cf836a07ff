"""Attention for conversations laid end to end in one row: each sees only itself.

The row needs neither padding nor a mask of tokens × tokens: every conversation's slice goes through PyTorch's fused
causal attention by itself, so the work is the sum of the squares, not the square of the sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "dm_forge_packed"


def register() -> str:
    """Make the attention known to transformers; returns its name for `attn_implementation`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, packed_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, no_mask)
    return NAME


def no_mask(*_: Any, **__: Any) -> None:
    """The lengths say it all."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    lengths: tuple[int, ...] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query, key, value: [1, heads, tokens, width] → [1, tokens, heads, width].

    Without `lengths` the row is one conversation. Raises ValueError for what the fused kernel cannot do.
    """
    if softcap is not None:
        raise ValueError("packed attention does not know soft-capped scores")
    outputs = []
    start = 0
    for length in lengths or (query.shape[2],):
        inside = slice(start, start + length)
        start += length
        mask = _window_mask(length, sliding_window, query.device)
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, inside],
                key[:, :, inside],
                value[:, :, inside],
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            ).transpose(1, 2)
        )
    return torch.cat(outputs, dim=1), None


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """None where plain causal attention is right: no window, or a conversation that fits into it."""
    if window is None or length <= window:
        return None
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    return (distance >= 0) & (distance < window)
