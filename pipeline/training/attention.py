"""Attention for conversations laid end to end in one row: each sees only itself, and the stem it shares with others.

A layout gives the tokens of one family: a conversation alone, or a stem and then its branches, each of which sees the
stem and itself. In bf16 on a CPU the compiled kernel does it, elsewhere PyTorch's attention family by family.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from pipeline.training import native

NAME = "dm_forge_packed"


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
    if native.loaded() and query.dtype == torch.bfloat16 and not dropout and not query.shape[-1] % native.MULTIPLE:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        compiled: torch.Tensor = CompiledAttention.apply(query, key, value, layouts, scale, sliding_window)
        return compiled, None
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


class CompiledAttention(torch.autograd.Function):  # type: ignore[misc]
    """The same by our kernel; kept for the backward are its inputs, what came out and the softmaxes' divisors."""

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
        kernels = native.loaded()
        if kernels is None:
            raise ValueError("the compiled kernels are not loaded")
        inputs = tuple(
            tensor[0] if tensor.stride(-1) == 1 else tensor[0].contiguous() for tensor in (query, key, value)
        )
        out, logs = kernels.attention(inputs, scale, window, layouts)
        ctx.save_for_backward(*inputs, out, logs)
        ctx.kernels, ctx.settings = kernels, (scale, window, layouts)
        return out.view(1, len(out), query.shape[1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *inputs, out, logs = ctx.saved_tensors
        grads = tuple(tensor.new_empty(tensor.shape) for tensor in inputs)
        ctx.kernels.attention_backward(tuple(inputs), *ctx.settings, (out, logs), gradient.contiguous(), grads)
        return *(tensor[None] for tensor in grads), None, None, None


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
