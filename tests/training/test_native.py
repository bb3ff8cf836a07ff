"""The compiled kernels against PyTorch's own mathematics in fp32."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, silu

from pipeline.training import attention, native

LAYOUTS = (
    ((5,),),
    ((100, 50, 40, 60, 30, 55, 50), (30,)),
    ((70,), (17, 3, 130, 9), (1, 1, 1)),
)


def bf16(*shape, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def close(ours, theirs, share=0.01):
    """Within a hundredth of the largest number: bf16 keeps eight bits."""
    assert ours.shape == theirs.shape
    assert float((ours.float() - theirs).abs().max()) <= share * float(theirs.abs().max())


def threads(count, function):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return function()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize(("heads", "groups", "width"), [(9, 3, 64), (4, 2, 32), (4, 1, 96)])
@pytest.mark.parametrize("layouts", LAYOUTS)
def test_attention_and_its_gradients_are_those_of_pytorch(compiled, layouts, heads, groups, width, window):
    tokens, keys = sum(map(sum, layouts)), heads // groups
    rows = bf16(tokens, (heads + 2 * keys) * width).requires_grad_()
    slope = bf16(1, tokens, heads, width, seed=1)

    def attend(rows):
        parts = rows.view(1, tokens, -1, width).transpose(1, 2).split([heads, keys, keys], dim=1)
        out, _ = attention.packed_attention(None, *parts, None, layouts=layouts, sliding_window=window)
        (gradient,) = torch.autograd.grad(out, rows, slope.to(out.dtype))
        return out.detach(), gradient

    ours = attend(rows)
    native.load(None)
    for mine, theirs in zip(ours, attend(rows.detach().float().requires_grad_()), strict=True):
        close(mine, theirs)


def test_the_number_of_threads_changes_no_bit(compiled):
    parts = tuple(bf16(heads, 245, 64, seed=seed) for seed, heads in enumerate((9, 3, 3)))
    slope = bf16(245, 9 * 64, seed=7)

    def both():
        made = compiled.attention(parts, 0.125, None, ((90, 60, 50), (45,)))
        grads = tuple(torch.empty_like(part) for part in parts)
        compiled.attention_backward(parts, 0.125, None, ((90, 60, 50), (45,)), made, slope, grads)
        return (*made, *grads)

    for one, two in zip(threads(1, both), threads(2, both), strict=True):
        assert torch.equal(one, two)


def test_the_matrix_tiles_are_given_back_as_they_were(compiled):
    """PyTorch's own products use them in the same threads, and configure them once."""
    x, weight = bf16(245, 576), bf16(576, 640, seed=1)
    parts = tuple(bf16(heads, 245, 64, seed=seed) for seed, heads in enumerate((9, 3, 3)))
    before = x @ weight
    first = compiled.attention(parts, 0.125, None, ((245,),))
    assert torch.equal(x @ weight, before)
    assert torch.equal(compiled.attention(parts, 0.125, None, ((245,),))[0], first[0])


def test_a_norm_of_a_sum_and_its_gradient(compiled):
    x, add, weight, slope, rest = (
        bf16(*shape, seed=n) for n, shape in enumerate([(7, 96), (7, 128), (96,), (7, 96), (7, 128)])
    )
    total, out, scales = compiled.norm(x, weight, 1e-5, add[:, :96])
    exact = (x.float() + add[:, :96].float()).requires_grad_()
    normed = exact * (exact.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.float()
    close(total, exact.detach())
    close(out, normed.detach())
    into = torch.zeros(7, 128, dtype=torch.bfloat16)
    compiled.norm_backward(slope, total, weight, scales, rest[:, :96], into[:, :96])
    (gradient,) = torch.autograd.grad(normed, exact, slope.float())
    close(into[:, :96], gradient + rest[:, :96].float())
    assert not into[:, 96:].any()


def test_rotary_positions_turn_as_transformers_does_and_back(compiled):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    rows, angle = bf16(11, 5 * 64), torch.arange(11)[:, None] * torch.rand(1, 32)
    cosines, sines = (torch.cat([table, table], dim=-1).bfloat16() for table in (angle.cos(), angle.sin()))
    turned = rows.clone()
    compiled.rotate(turned, cosines, sines, 4)
    heads = rows.float().view(1, 11, 5, 64).transpose(1, 2)
    expected, _ = apply_rotary_pos_emb(heads, heads, cosines.float()[None], sines.float()[None])
    close(turned[:, :256], expected[0, :4].transpose(0, 1).reshape(11, 256))
    assert torch.equal(turned[:, 256:], rows[:, 256:])
    compiled.rotate(turned, cosines, sines, 4, back=True)
    close(turned, rows.float(), share=0.02)


def test_the_gated_activation_and_its_gradient(compiled):
    rows, slope = bf16(9, 2 * 96 + 32, scale=4.0), bf16(9, 96, seed=1)
    exact = rows[:, : 2 * 96].float().requires_grad_()
    expected = silu(exact[:, :96]) * exact[:, 96:]
    close(compiled.swiglu(rows, 96), expected.detach())
    into = torch.zeros_like(rows)
    close(compiled.swiglu_backward(rows, slope, into), expected.detach())
    (gradient,) = torch.autograd.grad(expected, exact, slope.float())
    close(into[:, : 2 * 96], gradient)
    assert not into[:, 2 * 96 :].any()


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_loss_and_its_gradient(compiled, scale):
    logits, labels = bf16(6, 320, scale=scale), torch.tensor([0, 5, 319, 7, 7, 100])
    shares = torch.tensor([1.0, 5.0, 0.0, 2.0, 1.0, 0.5])
    exact = logits.float().requires_grad_()
    expected = cross_entropy(exact, labels, reduction="none") * shares
    (gradient,) = torch.autograd.grad(expected.sum(), exact)
    close(compiled.loss(logits, labels, shares), expected.detach(), share=1e-5)
    close(logits, gradient)
