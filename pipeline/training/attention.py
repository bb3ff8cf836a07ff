"""Attention for conversations laid end to end in one row: each sees only itself, and the stem it shares with others.

The row needs neither padding nor a mask of tokens x tokens: every conversation's slice is attended by itself, so the
work is the sum of the squares, not the square of the sum. A layout gives the tokens of one family: a conversation
alone, or a stem and then its branches, each of which sees the stem and itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "dm_forge_packed"
BLOCK = 192  # query rows handled at once on a CPU: keys after the block's end are never touched
WHOLE = 512  # a row up to this long is one block: oneDNN makes code for every shape, and blocks differ from row to row


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
    for block, mask in _masked(layouts, sliding_window, query.device):
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, block.rows],
                torch.cat([key[:, :, columns] for columns in block.columns], dim=2),
                torch.cat([value[:, :, columns] for columns in block.columns], dim=2),
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
        for block, bias in _biased(layouts, window, query.dtype):
            q, k, v = _grouped(query, block.rows, groups), block.seen(key), block.seen(value)
            mask = bias.repeat(groups, 1)
            shares = torch.baddbmm(mask.expand(len(k), *mask.shape), q, k.transpose(1, 2), alpha=scale).softmax(-1)
            out[0, block.rows] = torch.bmm(shares, v).view(heads, -1, width).transpose(0, 1)
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
        for (block, _), shares in zip(_biased(ctx.layouts, ctx.window, query.dtype), kept, strict=True):
            q, k, v = _grouped(query, block.rows, groups), block.seen(key), block.seen(value)
            out = _grouped(by_head, block.rows, groups)
            block.add(grad_v, torch.bmm(shares.transpose(1, 2), out))
            scores = torch._softmax_backward_data(torch.bmm(out, v.transpose(1, 2)), shares, -1, shares.dtype)
            grad_q[0, :, block.rows] = torch.bmm(scores, k).mul_(ctx.scale).view(query.shape[1], -1, query.shape[-1])
            block.add(grad_k, torch.bmm(scores.transpose(1, 2), q).mul_(ctx.scale))
        return grad_q, grad_k, grad_v, None, None, None


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of queries, and the columns of keys among which are all that they may see."""

    rows: slice
    columns: tuple[slice, ...]

    def seen(self, values: torch.Tensor) -> torch.Tensor:
        """[1, heads, tokens, width] → [heads, columns, width]."""
        parts = [values[0, :, columns] for columns in self.columns]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def add(self, total: torch.Tensor, part: torch.Tensor) -> None:
        """Add [heads, columns, width] where the columns came from."""
        start = 0
        for columns in self.columns:
            count = columns.stop - columns.start
            total[0, :, columns] += part[:, start : start + count]
            start += count

    def hides(self, seats: torch.Tensor, window: int | None) -> torch.Tensor:
        """[rows, columns] bool: True where a row does not see a column. `seats` as from _seats."""
        family, branch, place = seats[:, self.rows, None]
        others, branches, places = torch.cat([seats[:, None, columns] for columns in self.columns], dim=-1)
        distance = place - places
        hidden = (family != others) | (distance < 0) | ((branch != branches) & (branches != 0))
        return hidden if window is None else hidden | (distance >= window)


def _seats(layouts: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    """[3, tokens] for every token of the row its family, its branch (0 in the stem), its position."""
    seats = [
        (family, branch, (stem if branch else 0) + place)
        for family, (stem, *branches) in enumerate(layouts)
        for branch, count in enumerate([stem, *branches])
        for place in range(count)
    ]
    return torch.tensor(seats).T


@lru_cache(maxsize=4)  # every layer of a step asks for the same
def _masked(
    layouts: tuple[tuple[int, ...], ...], window: int | None, device: torch.device
) -> tuple[tuple[_Block, torch.Tensor | None], ...]:
    """The row's blocks, each with a mask that is True where a row sees a column; None for plain causal attention."""
    seats = _seats(layouts)
    masked = []
    for block in _blocks(layouts, window, seats.shape[1]):
        short = window is None or block.rows.stop - block.rows.start <= window
        plain = block.columns == (block.rows,) and short  # a conversation alone, from its beginning
        masked.append((block, None if plain else ~block.hides(seats, window).to(device)))
    return tuple(masked)


@lru_cache(maxsize=4)
def _biased(
    layouts: tuple[tuple[int, ...], ...], window: int | None, dtype: torch.dtype
) -> tuple[tuple[_Block, torch.Tensor], ...]:
    """The row's blocks, each with what is added to its scores: 0, or -inf where a row does not see a column."""
    seats = _seats(layouts)
    everything = slice(0, seats.shape[1])
    whole = everything.stop <= WHOLE
    blocks = [_Block(everything, (everything,))] if whole else _blocks(layouts, window, BLOCK)
    return tuple(
        (block, torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf")))
        for block in blocks
        for hidden in [block.hides(seats, window)]
    )


def _blocks(layouts: tuple[tuple[int, ...], ...], window: int | None, size: int) -> Iterator[_Block]:
    """Blocks of at most `size` rows: long conversations in several, short branches of one stem together."""
    start = 0
    for stem, *branches in layouts:
        yield from _alone(start, stem, 0, start, window, size)
        at = start + stem
        together: list[int] = []
        for length in branches:
            if sum(together) + length > size and together:
                yield _side_by_side(start, stem, at - sum(together), together, window)
                together = []
            if length > size:
                yield from _alone(at, length, stem, start, window, size)
            else:
                together.append(length)
            at += length
        if together:
            yield _side_by_side(start, stem, at - sum(together), together, window)
        start = at


def _side_by_side(start: int, stem: int, at: int, branches: list[int], window: int | None) -> _Block:
    hidden = 0 if window is None else min(stem, max(0, stem - window + 1))
    rows = slice(at, at + sum(branches))
    return _Block(rows, (slice(start + hidden, start + stem), rows))


def _alone(at: int, length: int, stem: int, start: int, window: int | None, size: int) -> Iterator[_Block]:
    """The blocks of one conversation, or of one branch behind its stem; keys after a block's end are never touched."""
    for first in range(0, length, size):
        last = min(first + size, length)
        reach = 0 if window is None else max(0, stem + first - window + 1)  # the first position in the window
        own = slice(at + max(0, reach - stem), at + last)
        columns = (slice(start + min(reach, stem), start + stem), own) if stem else (own,)
        yield _Block(slice(at + first, at + last), columns)


def _grouped(heads: torch.Tensor, rows: slice, groups: int) -> torch.Tensor:
    """[1, heads, tokens, width] → [key heads, groups x rows, width]: queries that share a key head, side by side."""
    part = heads[0, :, rows]
    return part.reshape(len(part) // groups, -1, part.shape[-1])
