"""The two places where the time goes, written out by hand: a linear layer with LoRA, and the loss."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.training import native

CHUNK = 128  # supervised positions whose logits exist at once: 128 x 49,152 in fp32 is 25 MB


class LoraLinear(torch.autograd.Function):  # type: ignore[misc]
    """x @ W.T + bias + scale * (x @ A.T) @ B.T for a frozen W, in W's dtype, with A and B kept in fp32.

    PEFT's own forward makes four passes over tensors as large as the output; here the low-rank product is added inside
    the matrix product's own pass, forwards and backwards, and nothing is saved but x and the [tokens, rank] product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a, b = a.to(x.dtype), b.to(x.dtype)
        inner = rows @ a.t()
        out = torch.nn.functional.linear(rows, weight, bias)
        out.addmm_(inner, b.t(), alpha=scale)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, inner, weight, a, b = ctx.saved_tensors
        out = gradient.reshape(-1, gradient.shape[-1])
        low = (out @ b).mul_(ctx.scale)
        grad_a = (low.t() @ rows).float()
        grad_b = (out.t() @ inner).float().mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (out @ weight).addmm_(low, a).view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None


def install_lora(model: torch.nn.Module) -> int:
    """Let every plain LoRA layer of a PEFT model compute through LoraLinear; returns how many do.

    Layers that are more than that (dropout, DoRA, quantised weights) keep PEFT's own forward.
    """
    from peft.tuners.lora.layer import Linear

    installed = 0
    for module in model.modules():
        if isinstance(module, Linear) and is_plain(module):
            module.forward = _forward(module)
            installed += 1
    return installed


def is_plain(module: Any) -> bool:
    """Whether a LoRA layer is nothing but its frozen layer and the two thin products."""
    (name,) = module.active_adapters
    return (
        type(module.base_layer) is torch.nn.Linear
        and isinstance(module.lora_dropout[name], torch.nn.Identity)
        and name not in module.lora_variant
        and module.lora_B[name].bias is None
        and not module.base_layer.weight.requires_grad
    )


def _forward(module: Any) -> Any:
    (name,) = module.active_adapters
    base, a, b, scale = module.base_layer, module.lora_A[name], module.lora_B[name], float(module.scaling[name])

    def forward(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if module.disable_adapters:
            result: torch.Tensor = base(x)
            return result
        output: torch.Tensor = LoraLinear.apply(x, base.weight, base.bias, a.weight, b.weight, scale)
        return output

    return forward


class FrozenHeadLoss(torch.autograd.Function):  # type: ignore[misc]
    """Cross entropy of hidden [n, width] under a frozen head [vocab, width], times shares [n], summed; never more than
    CHUNK rows of logits at once. The gradient is made in the same pass, so that the logits are computed once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        shares: torch.Tensor,
        softcap: float | None,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK):
            part, goals, counts = (values[start : start + CHUNK] for values in (hidden, labels, shares))
            loss, slope = _losses(part @ weight.t(), goals, counts, softcap)
            total += loss
            if gradient is not None:
                gradient[start : start + CHUNK] = slope @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer.to(gradient.dtype), None, None, None, None


def _losses(
    logits: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Their summed loss [] and its gradient in the logits' dtype, computed in fp32; the logits are used up."""
    compiled = native.loaded()
    if compiled and softcap is None and logits.dtype == torch.bfloat16 and not logits.shape[1] % native.MULTIPLE:
        return compiled.loss(logits, labels, shares).sum(), logits
    goals, counts, dtype = labels[:, None], shares[:, None], logits.dtype
    logits = logits.float()
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    norm = logits.logsumexp(-1, keepdim=True)
    total = ((norm - logits.gather(1, goals)) * counts).sum()
    slope = 1 - (logits / softcap).square_() if softcap is not None else None
    probabilities = logits.sub_(norm).exp_()
    probabilities.scatter_add_(1, goals, probabilities.new_full(goals.shape, -1.0))
    if slope is not None:
        probabilities.mul_(slope)
    return total, probabilities.mul_(counts).to(dtype)


def head_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    shares: torch.Tensor,
    softcap: float | None = None,
) -> torch.Tensor:
    """Cross entropy in fp32 of hidden [n, width] against labels [n], times shares [n] and summed, for a frozen or a
    trained head."""
    if not weight.requires_grad:
        loss: torch.Tensor = FrozenHeadLoss.apply(hidden, weight, labels, shares, softcap)
        return loss
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(hidden), CHUNK):
        part = (values[start : start + CHUNK] for values in (hidden, labels, shares))
        total = total + torch.utils.checkpoint.checkpoint(_chunk_loss, weight, softcap, *part, use_reentrant=False)
    return total


def _chunk_loss(
    weight: torch.Tensor, softcap: float | None, hidden: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    logits = (hidden @ weight.t()).float()
    if softcap is not None:
        logits = (logits / softcap).tanh() * softcap
    return torch.dot(torch.nn.functional.cross_entropy(logits, labels, reduction="none"), shares)
