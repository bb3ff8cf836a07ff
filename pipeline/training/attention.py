"""Attention for conversations laid end to end in one row: each sees only itself.

The row needs neither padding nor a mask of tokens x tokens: every conversation's slice is attended by itself, so the
work is the sum of the squares, not the square of the sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "dm_forge_packed"
BLOCK = 192  # query rows handled at once on a CPU: keys after the block's end are never touched


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

    Without `lengths` the row is one conversation. Raises ValueError for what neither way can do.
    """
    if softcap is not None:
        raise ValueError("packed attention does not know soft-capped scores")
    lengths = lengths or (query.shape[2],)
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and not dropout:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        blocked: torch.Tensor = BlockedAttention.apply(query, key, value, lengths, scale, sliding_window)
        return blocked, None
    outputs = []
    start = 0
    for length in lengths:
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


class BlockedAttention(torch.autograd.Function):  # type: ignore[misc]
    """The same in bf16 on a CPU, where PyTorch's fused backward is slow: per block of queries one softmax over the keys
    that the block may see, kept for the backward. About half the time of scaled_dot_product_attention, both ways."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: tuple[int, ...],
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        _, heads, tokens, width = query.shape
        groups = heads // key.shape[1]
        out = query.new_empty(1, tokens, heads, width)
        kept = []
        for rows, columns in _blocks(lengths, window):
            q, k, v = _grouped(query, rows, groups), key[0, :, columns], value[0, :, columns]
            mask = _block_mask(rows, columns, window, query.dtype).repeat(groups, 1)
            shares = torch.baddbmm(mask.expand(len(k), *mask.shape), q, k.transpose(1, 2), alpha=scale).softmax(-1)
            out[0, rows] = torch.bmm(shares, v).view(heads, -1, width).transpose(0, 1)
            kept.append(shares)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.lengths, ctx.scale, ctx.window = lengths, scale, window
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        groups = query.shape[1] // key.shape[1]
        by_head = gradient.transpose(1, 2)
        grad_q, grad_k, grad_v = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (rows, columns), shares in zip(_blocks(ctx.lengths, ctx.window), kept, strict=True):
            q, k, v = _grouped(query, rows, groups), key[0, :, columns], value[0, :, columns]
            out = _grouped(by_head, rows, groups)
            grad_v[0, :, columns] += torch.bmm(shares.transpose(1, 2), out)
            scores = torch._softmax_backward_data(torch.bmm(out, v.transpose(1, 2)), shares, -1, shares.dtype)
            grad_q[0, :, rows] = torch.bmm(scores, k).mul_(ctx.scale).view(query.shape[1], -1, query.shape[-1])
            grad_k[0, :, columns] += torch.bmm(scores.transpose(1, 2), q).mul_(ctx.scale)
        return grad_q, grad_k, grad_v, None, None, None


def _blocks(lengths: tuple[int, ...], window: int | None) -> Iterator[tuple[slice, slice]]:
    """Rows of queries and the columns of keys they may see, conversation by conversation."""
    start = 0
    for length in lengths:
        for first in range(start, start + length, BLOCK):
            last = min(first + BLOCK, start + length)
            seen = start if window is None else max(start, first - window + 1)
            yield slice(first, last), slice(seen, last)
        start += length


def _block_mask(rows: slice, columns: slice, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    distance = torch.arange(rows.start, rows.stop)[:, None] - torch.arange(columns.start, columns.stop)[None, :]
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(distance.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))


def _grouped(heads: torch.Tensor, rows: slice, groups: int) -> torch.Tensor:
    """[1, heads, tokens, width] → [key heads, groups x rows, width]: queries that share a key head, side by side."""
    part = heads[0, :, rows]
    return part.reshape(len(part) // groups, -1, part.shape[-1])


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """None where plain causal attention is right: no window, or a conversation that fits into it."""
    if window is None or length <= window:
        return None
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    return (distance >= 0) & (distance < window)
