"""Attention for conversations laid end to end in one row: each sees only itself, and the stem it shares with others.

The row is attended in blocks of queries. A block takes the columns from the first to the last that any of its queries
sees, and a mask says which of them each one sees. A layout gives the tokens of one family: a conversation alone, or a
stem and then its branches, each of which sees the stem and itself.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "dm_forge_packed"
BLOCK = 192  # queries handled at once on a CPU: fewer leave out more of the columns, more make longer products
_MULTIPLE = 16  # where a block's columns begin on a CPU: oneDNN makes code for every shape


def register() -> str:
    """Make the attention known to transformers; returns its name for `attn_implementation`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, packed_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, no_mask)
    return NAME


def no_mask(*_: Any, **__: Any) -> None:
    """The layouts say it all."""


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
    layouts: tuple[tuple[int, ...], ...] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query, key, value: [1, heads, tokens, width] → [1, tokens, heads, width].

    Without `layouts` the row is one conversation. Raises ValueError for what neither way can do.
    """
    if softcap is not None:
        raise ValueError("packed attention does not know soft-capped scores")
    layouts = layouts or ((query.shape[2],),)
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and not dropout:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        blocked: torch.Tensor = BlockedAttention.apply(query, key, value, layouts, scale, sliding_window)
        return blocked, None
    outputs = []
    for place, mask in _masked(layouts, sliding_window, query.device):
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, place],
                key[:, :, place],
                value[:, :, place],
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
        layouts: tuple[tuple[int, ...], ...],
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        _, heads, tokens, width = query.shape
        groups = heads // key.shape[1]
        out = query.new_empty(1, tokens, heads, width)
        kept = []
        for rows, columns, bias in _biased(layouts, window, query.dtype):
            q, k, v = _grouped(query, rows, groups), key[0, :, columns], value[0, :, columns]
            mask = bias.repeat(groups, 1)
            shares = torch.baddbmm(mask.expand(len(k), *mask.shape), q, k.transpose(1, 2), alpha=scale).softmax(-1)
            out[0, rows] = torch.bmm(shares, v).view(heads, -1, width).transpose(0, 1)
            kept.append(shares)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.layouts, ctx.scale, ctx.window = layouts, scale, window
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        groups = query.shape[1] // key.shape[1]
        by_head = gradient.transpose(1, 2)
        grad_q, grad_k, grad_v = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (rows, columns, _), shares in zip(_biased(ctx.layouts, ctx.window, query.dtype), kept, strict=True):
            q, k, v = _grouped(query, rows, groups), key[0, :, columns], value[0, :, columns]
            out = _grouped(by_head, rows, groups)
            grad_v[0, :, columns] += torch.bmm(shares.transpose(1, 2), out)
            scores = torch._softmax_backward_data(torch.bmm(out, v.transpose(1, 2)), shares, -1, shares.dtype)
            grad_q[0, :, rows] = torch.bmm(scores, k).mul_(ctx.scale).view(query.shape[1], -1, query.shape[-1])
            grad_k[0, :, columns] += torch.bmm(scores.transpose(1, 2), q).mul_(ctx.scale)
        return grad_q, grad_k, grad_v, None, None, None


@lru_cache(maxsize=4)  # every layer of a step asks for the same
def _masked(
    layouts: tuple[tuple[int, ...], ...], window: int | None, device: torch.device
) -> tuple[tuple[slice, torch.Tensor | None], ...]:
    """Each family's place in the row, and a mask that is True where a token sees another; None where it sees all that
    lie before it."""
    seats = _seats(layouts)
    masked = []
    for layout, edges in zip(layouts, pairwise(accumulate(map(sum, layouts), initial=0)), strict=True):
        place = slice(*edges)
        plain = len(layout) == 1 and (window is None or layout[0] <= window)
        masked.append((place, None if plain else _seen(seats[:, place], seats[:, place], window).to(device)))
    return tuple(masked)


@lru_cache(maxsize=4)
def _biased(
    layouts: tuple[tuple[int, ...], ...], window: int | None, dtype: torch.dtype
) -> tuple[tuple[slice, slice, torch.Tensor], ...]:
    """Blocks of BLOCK rows: their rows, columns, and what is added to their scores: -inf where a row does not see a
    column, else 0."""
    seats = _seats(layouts)
    blocks = []
    for start in range(0, seats.shape[1], BLOCK):
        rows = slice(start, min(start + BLOCK, seats.shape[1]))
        seen = _seen(seats[:, rows], seats[:, : rows.stop], window)
        first = int(seen.any(dim=0).nonzero()[0]) // _MULTIPLE * _MULTIPLE
        hidden = ~seen[:, first:]
        bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
        blocks.append((rows, slice(first, rows.stop), bias))
    return tuple(blocks)


def _seats(layouts: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    """[3, tokens] for every token of the row its family, its branch (0 in the stem), its position."""
    seats = [
        (family, branch, (stem if branch else 0) + place)
        for family, (stem, *branches) in enumerate(layouts)
        for branch, count in enumerate([stem, *branches])
        for place in range(count)
    ]
    return torch.tensor(seats).T


def _seen(rows: torch.Tensor, columns: torch.Tensor, window: int | None) -> torch.Tensor:
    """[rows, columns] bool: True where a token of `rows` sees one of `columns`, both as from _seats."""
    family, branch, place = rows[:, :, None]
    others, branches, places = columns
    distance = place - places
    seen = (family == others) & ((branch == branches) | (branches == 0)) & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def _grouped(heads: torch.Tensor, rows: slice, groups: int) -> torch.Tensor:
    """[1, heads, tokens, width] → [key heads, groups x rows, width]: queries that share a key head, side by side."""
    part = heads[0, :, rows]
    return part.reshape(len(part) // groups, -1, part.shape[-1])
