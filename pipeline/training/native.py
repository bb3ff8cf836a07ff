"""Our compiled kernels for bf16 on a CPU with AVX-512 (pipeline/environment/native): tensors in, addresses out.

They do in one pass what PyTorch does in several, and know which token of a row sees which; attention's products take a
CPU's matrix tiles (AMX) where it has them. Every sum is taken in one order, whatever the number of threads. The library takes the OpenMP that PyTorch has loaded already.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

MULTIPLE = 32  # of which widths are multiples
_LONG, _FLOAT, _POINTER = ctypes.c_long, ctypes.c_float, ctypes.c_void_p
_SIGNATURES: dict[str, list[Any]] = {
    "dm_norm": [_POINTER, _POINTER, _LONG, *[_POINTER] * 4, _LONG, _LONG, _FLOAT],
    "dm_norm_backward": [*[_POINTER] * 5, _LONG, _POINTER, _LONG, _LONG, _LONG],
    "dm_rotate": [_POINTER, _LONG, _POINTER, _POINTER, _LONG, _LONG, _LONG, _LONG],
    "dm_swiglu": [_POINTER, _LONG, _POINTER, _LONG, _LONG],
    "dm_swiglu_backward": [_POINTER, _LONG, _POINTER, _POINTER, _LONG, _POINTER, _LONG, _LONG],
    "dm_attention": [*[_POINTER] * 6, *[_LONG] * 4, _FLOAT, _LONG, _POINTER, _LONG],
    "dm_attention_backward": [*[_POINTER] * 12, *[_LONG] * 4, _FLOAT, _LONG, _POINTER, _POINTER, _LONG],
    "dm_loss": [*[_POINTER] * 4, _LONG, _LONG],
}
_loaded: dict[Path, Kernels] = {}


def load(path: Path | None) -> Kernels | None:
    """The library, from here on used by whatever can; None, and nothing uses one."""
    if path and path not in _loaded:
        _loaded[path] = Kernels(path)
    global _kernels
    _kernels = _loaded[path] if path else None
    return _kernels


def loaded() -> Kernels | None:
    return _kernels


_kernels: Kernels | None = None


class Kernels:
    """The compiled library. Tensors are bf16 and dense in their last dimension; scales, logs and losses fp32."""

    def __init__(self, path: Path) -> None:
        self._call = ctypes.CDLL(str(path))
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._call, name)
            function.argtypes, function.restype = arguments, None

    def norm(
        self, x: torch.Tensor, weight: torch.Tensor, epsilon: float, add: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x + add [tokens, width]; that over its root mean square, times weight; 1 over the root mean square [tokens]."""
        total = x if add is None else torch.empty_like(x)
        out, scales = torch.empty_like(x), torch.empty(len(x), dtype=torch.float32)
        given = (None, 0) if add is None else (add.data_ptr(), add.stride(0))
        self._call.dm_norm(
            *(x.data_ptr(), *given, total.data_ptr(), weight.data_ptr(), out.data_ptr(), scales.data_ptr()),
            *(*x.shape, epsilon),
        )
        return total, out, scales

    def norm_backward(
        self,
        slope: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        scales: torch.Tensor,
        rest: torch.Tensor,
        into: torch.Tensor,
    ) -> None:
        """into = gradient of the norm's x for the gradient `slope` of its result, plus `rest`."""
        self._call.dm_norm_backward(
            *(slope.data_ptr(), x.data_ptr(), weight.data_ptr(), scales.data_ptr(), rest.data_ptr(), rest.stride(0)),
            *(into.data_ptr(), into.stride(0), *x.shape),
        )

    def rotate(
        self, rows: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, heads: int, *, back: bool = False
    ) -> None:
        """Rotary positions of so many heads at the beginning of each row, in place; `back` is the gradient's way."""
        self._call.dm_rotate(
            *(rows.data_ptr(), rows.stride(0), cosines.data_ptr(), sines.data_ptr(), len(rows)),
            *(heads, cosines.shape[1], int(back)),
        )

    def swiglu(self, rows: torch.Tensor, width: int) -> torch.Tensor:
        """silu(gate) x up [tokens, width], of rows that hold both."""
        out = rows.new_empty(len(rows), width)
        self._call.dm_swiglu(rows.data_ptr(), rows.stride(0), out.data_ptr(), *out.shape)
        return out

    def swiglu_backward(self, rows: torch.Tensor, slope: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        """Writes the gradients of gate and up; gives silu(gate) x up once more."""
        out = torch.empty_like(slope)
        self._call.dm_swiglu_backward(
            *(rows.data_ptr(), rows.stride(0), slope.data_ptr(), into.data_ptr(), into.stride(0)),
            *(out.data_ptr(), *out.shape),
        )
        return out

    def attention(
        self,
        inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        scale: float,
        window: int | None,
        layouts: tuple[tuple[int, ...], ...],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of queries, keys and values [heads, tokens, width]: what comes out [tokens, heads x width], and the logs of the
        softmaxes' divisors [heads, tokens]."""
        query, key, value = inputs
        heads, tokens, width = query.shape
        segments, _ = _segments(layouts)
        out = query.new_empty(tokens, heads * width)
        logs = torch.empty(heads, tokens, dtype=torch.float32)
        self._call.dm_attention(
            *(query.data_ptr(), key.data_ptr(), value.data_ptr(), _strides(inputs), out.data_ptr(), logs.data_ptr()),
            *(tokens, heads, len(key), width, scale, window or 0, segments.data_ptr(), len(segments)),
        )
        return out, logs

    def attention_backward(
        self,
        inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        scale: float,
        window: int | None,
        layouts: tuple[tuple[int, ...], ...],
        made: tuple[torch.Tensor, torch.Tensor],
        slope: torch.Tensor,
        into: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> None:
        """Writes the gradients of queries, keys and values. `made` is what `attention` gave, `slope` the gradient of
        its first."""
        query, key, value = inputs
        heads, tokens, width = query.shape
        segments, families = _segments(layouts)
        sums = torch.empty(heads * tokens * 2 * width, dtype=torch.float32)
        self._call.dm_attention_backward(
            *(query.data_ptr(), key.data_ptr(), value.data_ptr(), _strides(inputs)),
            *(made[0].data_ptr(), slope.data_ptr(), made[1].data_ptr()),
            *(*(tensor.data_ptr() for tensor in into), _strides(into), sums.data_ptr(), tokens, heads, len(key), width),
            *(scale, window or 0, segments.data_ptr(), families.data_ptr(), len(families) - 1),
        )

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Cross entropies times shares [n]; the logits [n, vocabulary] become their gradient."""
        losses = torch.empty(len(logits), dtype=torch.float32)
        self._call.dm_loss(*(logits.data_ptr(), labels.data_ptr(), shares.data_ptr(), losses.data_ptr()), *logits.shape)
        return losses


def _strides(heads: tuple[torch.Tensor, ...]) -> Any:
    """From token to token and from head to head, of each [heads, tokens, width]."""
    return (ctypes.c_int64 * 6)(*(stride for tensor in heads for stride in (tensor.stride(1), tensor.stride(0))))


@lru_cache(maxsize=4)  # every layer of a row asks for the same
def _segments(layouts: tuple[tuple[int, ...], ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """For each segment its first token, its tokens, its stem's first token, its stem's tokens; and each family's first
    segment, then the number of segments."""
    segments: list[tuple[int, int, int, int]] = []
    families, at = [], 0
    for layout in layouts:
        families.append(len(segments))
        start = at
        for number, tokens in enumerate(layout):
            segments.append((at, tokens, start, layout[0] if number else 0))
            at += tokens
    return torch.tensor(segments), torch.tensor([*families, len(segments)])
