"""A decoder layer as one step of autograd, with our compiled kernels between the matrix products.

Projections that read the same input are one product (queries, keys and values; gate and up), and LoRA's A matrices are
further rows of it; its B matrices are one product of their own, forwards and backwards. Norms, rotary positions,
attention and the gated activation are one pass each. Of a layer are kept its two inputs, what the products made, and
what attention made; norms and activations are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.training import native
from pipeline.training.kernels import is_plain
from pipeline.training.native import Kernels


@dataclass(frozen=True)
class _Lora:
    """One layer's adapter: its A and B, its columns among the outputs and among the ranks; `spread` is B for the product."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    outputs: slice
    ranks: slice
    spread: torch.Tensor


class Projection:
    """Linear layers of the same input as one matrix [outputs + ranks, inputs]: their weights, then their A's."""

    def __init__(self, layers: Sequence[Any]) -> None:
        bases = [getattr(layer, "base_layer", layer) for layer in layers]
        weight = bases[0].weight
        self.outputs = sum(base.out_features for base in bases)
        self._loras: list[_Lora] = []
        output, rank = 0, self.outputs
        for layer, base in zip(layers, bases, strict=True):
            columns = slice(output, output + base.out_features)
            if base is not layer:
                (name,) = layer.active_adapters
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
                ranks = slice(rank, rank + len(a))
                spread = weight.new_empty(len(a), len(b))
                self._loras.append(_Lora(a, b, float(layer.scaling[name]), columns, ranks, spread))
                rank = ranks.stop
            output = columns.stop
        self._matrix = weight.new_empty(rank, weight.shape[1])
        parts = self._matrix[: self.outputs].split([base.out_features for base in bases])
        for base, rows in zip(bases, parts, strict=True):
            base.weight.data = rows.copy_(base.weight)  # the layers read their weights from here: there is one copy

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [tensor for lora in self._loras for tensor in (lora.a, lora.b)]

    def refresh(self) -> None:
        """Take over what the optimiser changed since. (A fused one does not count its changes in the tensors' versions.)"""
        with torch.no_grad():
            for lora in self._loras:
                self._matrix[lora.ranks].copy_(lora.a)
                lora.spread.copy_(lora.b.t() * lora.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, inputs] → [tokens, outputs + ranks]: what the layers give, then what their A's do."""
        y = torch.mm(x, self._matrix.t())
        for lora in self._loras:
            y[:, lora.outputs].addmm_(y[:, lora.ranks], lora.spread)
        return y

    def room(self, like: torch.Tensor) -> torch.Tensor:
        """For the gradient of what `forward` gives."""
        return like.new_empty(len(like), len(self._matrix))

    def backward(self, slope: torch.Tensor) -> torch.Tensor:
        """The input's gradient, from that of the outputs; that of the ranks is written beside it."""
        for lora in self._loras:
            torch.mm(slope[:, lora.outputs], lora.spread.t(), out=slope[:, lora.ranks])
        return torch.mm(slope, self._matrix)

    def gradients(self, slope: torch.Tensor, x: torch.Tensor, low: torch.Tensor) -> list[torch.Tensor]:
        """Those of A and B of every layer, in fp32. `low` is what the A's gave."""
        grads = []
        if self._loras:
            of_a = (slope[:, self.outputs :].t() @ x).float()
            for lora in self._loras:
                ranks = slice(lora.ranks.start - self.outputs, lora.ranks.stop - self.outputs)
                grads += [of_a[ranks], (slope[:, lora.outputs].t() @ low[:, ranks]).float().mul_(lora.scale)]
        return grads


class FusedLayer:
    """What a decoder layer of Llama's kind computes."""

    def __init__(self, layer: Any, kernels: Kernels) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.kernels = kernels
        self.width, self.scale = attention.head_dim, float(attention.scaling)
        self.before, self.between = layer.input_layernorm, layer.post_attention_layernorm
        self.epsilon = float(self.before.variance_epsilon)
        self.qkv = Projection((attention.q_proj, attention.k_proj, attention.v_proj))
        self.out = Projection((attention.o_proj,))
        self.gate_up = Projection((mlp.gate_proj, mlp.up_proj))
        self.down = Projection((mlp.down_proj,))
        self.inner = mlp.down_proj.in_features
        self.heads = (attention.config.num_attention_heads, *[attention.config.num_key_value_heads] * 2)
        self.parameters = [tensor for part in self.projections for tensor in part.parameters]

    @property
    def projections(self) -> tuple[Projection, ...]:
        return self.qkv, self.out, self.gate_up, self.down

    def split(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values [heads, tokens, width] of rows that hold them side by side."""
        by_head = rows[:, : self.qkv.outputs].view(len(rows), -1, self.width).transpose(0, 1)
        query, key, value = by_head.split(self.heads)
        return query, key, value

    def __call__(
        self,
        hidden_states: torch.Tensor,
        *_: Any,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        layouts: tuple[tuple[int, ...], ...] | None = None,
        **__: Any,
    ) -> torch.Tensor:
        """hidden_states: [1, tokens, width], position_embeddings: [1, tokens, head width] each."""
        for part in self.projections:
            part.refresh()
        tables = tuple(table[0].to(hidden_states.dtype).contiguous() for table in position_embeddings)
        layouts = layouts or ((hidden_states.shape[1],),)
        out: torch.Tensor = _Step.apply(hidden_states[0].contiguous(), self, tables, layouts, *self.parameters)
        return out[None]


class _Step(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        layer: FusedLayer,
        tables: tuple[torch.Tensor, torch.Tensor],
        layouts: tuple[tuple[int, ...], ...],
        *_: torch.Tensor,
    ) -> torch.Tensor:
        kernels, width = layer.kernels, x.shape[1]
        _, normed, scales = kernels.norm(x, layer.before.weight, layer.epsilon)
        qkv = layer.qkv.forward(normed)
        kernels.rotate(qkv, *tables, sum(layer.heads[:2]))
        mixed, logs = kernels.attention(layer.split(qkv), layer.scale, None, layouts)
        added = layer.out.forward(mixed)
        middle, normed, more_scales = kernels.norm(x, layer.between.weight, layer.epsilon, added)
        gate_up = layer.gate_up.forward(normed)
        last = layer.down.forward(kernels.swiglu(gate_up, layer.inner))
        if any(ctx.needs_input_grad):
            low = (added[:, width:].contiguous(), last[:, width:].contiguous())
            ctx.save_for_backward(x, scales, qkv, mixed, logs, middle, more_scales, gate_up, *low)
            ctx.layer, ctx.tables, ctx.layouts = layer, tables, layouts
        return middle + last[:, :width]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        layer, kernels, width = ctx.layer, ctx.layer.kernels, gradient.shape[1]
        x, scales, qkv, mixed, logs, middle, more_scales, gate_up, low_out, low_down = ctx.saved_tensors
        of_last = layer.down.room(gradient)
        of_last[:, :width].copy_(gradient)
        of_active = layer.down.backward(of_last)
        of_gate_up = layer.gate_up.room(gradient)
        active = kernels.swiglu_backward(gate_up, of_active, of_gate_up)
        of_normed = layer.gate_up.backward(of_gate_up)
        _, normed, _ = kernels.norm(middle, layer.between.weight, layer.epsilon)
        grads = layer.gate_up.gradients(of_gate_up, normed, gate_up[:, layer.gate_up.outputs :])
        grads += layer.down.gradients(of_last, active, low_down)
        of_added = layer.out.room(gradient)
        kernels.norm_backward(of_normed, middle, layer.between.weight, more_scales, gradient, of_added)
        of_mixed = layer.out.backward(of_added)
        of_qkv = layer.qkv.room(gradient)
        kernels.attention_backward(
            layer.split(qkv), layer.scale, None, ctx.layouts, (mixed, logs), of_mixed, layer.split(of_qkv)
        )
        kernels.rotate(of_qkv, *ctx.tables, sum(layer.heads[:2]), back=True)
        of_normed = layer.qkv.backward(of_qkv)
        _, normed, _ = kernels.norm(x, layer.before.weight, layer.epsilon)
        grads = layer.out.gradients(of_added, mixed, low_out) + grads
        grads = layer.qkv.gradients(of_qkv, normed, qkv[:, layer.qkv.outputs :]) + grads
        of_x = torch.empty_like(x)
        kernels.norm_backward(of_normed, x, layer.before.weight, scales, of_added, of_x)
        return of_x, None, None, None, *grads


def install(model: Any) -> int:
    """Let every decoder layer that the loaded kernels can compute do so; returns how many do."""
    kernels = native.loaded()
    if kernels is None:
        return 0
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    chosen = [layer for layer in inner.get_decoder().layers if _fits(layer)]
    for layer in chosen:
        layer.forward = FusedLayer(layer, kernels)
    return len(chosen)


def _fits(layer: Any) -> bool:
    """Llama's kind, in bf16, frozen, without biases, of widths that the kernels take; LoRA plain where there is any."""
    if type(layer).__name__ != "LlamaDecoderLayer" or layer.mlp.config.hidden_act != "silu":
        return False
    attention, mlp = layer.self_attn, layer.mlp
    linear = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj)
    return attention.head_dim % native.MULTIPLE == 0 and all(_is_taken(one) for one in (*linear, mlp.down_proj))


def _is_taken(layer: Any) -> bool:
    base = getattr(layer, "base_layer", layer)
    if base is not layer and not is_plain(layer):
        return False
    weight = base.weight
    aligned = all(size % native.MULTIPLE == 0 for size in weight.shape)
    return base.bias is None and weight.dtype == torch.bfloat16 and not weight.requires_grad and aligned
