from __future__ import annotations

import pytest
import torch

from pipeline.config import LoraConfig
from pipeline.training import adapter, attention, batches, kernels, objective, trainer
from pipeline.training.batches import Sample
from tests.training.conftest import ARCHITECTURES


def tuned(base, dtype=torch.float32, settings=LoraConfig(rank=4, alpha=8)):  # noqa: B008
    model = adapter.attach_lora(adapter.load_base(base, dtype), settings, 3, base.name)
    with torch.no_grad():
        for parameter in adapter.trainable(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # B starts at zero and would hide its half
    return model


def conversations():
    drawn = torch.Generator().manual_seed(5)
    return [
        sample(str(n), torch.randint(3, 320, (n,), generator=drawn).tolist(), range(n // 2, n)) for n in (40, 17, 61)
    ]


def sample(name, ids, targets, group=""):
    return Sample(name, tuple(ids), tuple(targets), tuple(1.0 + target % 3 for target in targets), group=group)


def family():
    """Three that share 30 tokens, two trained ones among them, and go on for 5, 200 and 11 tokens of their own."""
    drawn = torch.Generator().manual_seed(6)
    stem = torch.randint(3, 320, (30,), generator=drawn).tolist()
    members = []
    for first, count in ((3, 5), (4, 200), (5, 11)):
        rest = [first, *torch.randint(3, 320, (count - 1,), generator=drawn).tolist()]
        targets = range(30, 30 + count) if members else [12, 29, *range(30, 30 + count)]
        members.append(sample(f"f{first}", [*stem, *rest], targets, group="f"))
    return members


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_supervised_loss_equals_the_full_logits_of_each_conversation_alone(architecture, base_of):
    model = tuned(base_of(architecture))
    expected = 0.0
    everything = [*conversations(), *family()]
    model.base_model.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        for sample in everything:
            ids = torch.tensor([sample.ids])
            logits = model(input_ids=ids).logits[0].float()
            goals = torch.tensor([sample.ids[target] for target in sample.targets])
            at = torch.tensor(sample.targets) - 1
            losses = torch.nn.functional.cross_entropy(logits[at], goals, reduction="none")
            expected += float(losses @ torch.tensor(sample.shares))
    model.base_model.model.set_attn_implementation(attention.register())
    objective.install(model)
    with torch.no_grad():
        packed = float(objective.row_loss(model, batches.micro_batch(batches.families(everything))))
    assert packed == pytest.approx(expected, rel=2e-5)


def test_a_packed_conversation_does_not_see_its_neighbours(base_of):
    model = tuned(base_of("llama")).base_model.model.get_decoder()
    first, second = torch.randint(3, 320, (1, 30)), torch.randint(3, 320, (1, 25))
    positions = torch.cat([torch.arange(30), torch.arange(25)])[None]
    row = torch.cat([first, second], dim=1)
    with torch.no_grad():
        alone = model(input_ids=second, position_ids=torch.arange(25)[None], layouts=((25,),)).last_hidden_state
        packed = model(input_ids=row, position_ids=positions, layouts=((30,), (25,))).last_hidden_state[:, 30:]
        leaking = model(input_ids=row, position_ids=positions, layouts=((55,),)).last_hidden_state[:, 30:]
    assert torch.allclose(alone, packed, atol=1e-5)
    assert not torch.allclose(alone, leaking, atol=1e-2)


@pytest.mark.parametrize("layouts", [((300,), (5,), (190,)), ((90,), (45, 7, 100, 3, 250))])
@pytest.mark.parametrize("window", [None, 50])
def test_blocked_attention_is_attention(window, layouts):
    torch.manual_seed(0)
    shapes = [(1, 6, 495, 16), (1, 2, 495, 16), (1, 2, 495, 16)]
    plain = [torch.randn(shape).bfloat16().float().requires_grad_() for shape in shapes]
    fast = [tensor.detach().bfloat16().requires_grad_() for tensor in plain]
    module, outer = torch.nn.Module(), torch.randn(1, 495, 6, 16).bfloat16()
    dense = torch.nn.functional.scaled_dot_product_attention(*plain, attn_mask=_seen(layouts, window), enable_gqa=True)
    expected = dense.transpose(1, 2)
    in_full, _ = attention.packed_attention(module, *plain, None, layouts=layouts, sliding_window=window)
    assert torch.allclose(in_full, expected, atol=1e-5)
    result, _ = attention.packed_attention(module, *fast, None, layouts=layouts, sliding_window=window)
    expected.backward(outer.float())
    result.backward(outer)
    pairs = [(expected, result), *((a.grad, b.grad) for a, b in zip(plain, fast, strict=True))]
    for right, got in pairs:
        assert float((right - got.float()).detach().norm() / right.detach().norm()) < 0.01


def _seen(layouts, window):
    """[tokens, tokens] True where a row sees a column, said token by token."""
    tokens = []
    for family, (stem, *branches) in enumerate(layouts):
        for branch, count in enumerate([stem, *branches]):
            tokens += [(family, branch, place + (stem if branch else 0)) for place in range(count)]
    return torch.tensor(
        [
            [
                family == other and beside in (0, branch) and 0 <= place - before < (window or place + 1)
                for other, beside, before in tokens
            ]
            for family, branch, place in tokens
        ]
    )


def test_the_lora_layer_gives_pefts_values_and_gradients():
    torch.manual_seed(1)
    x, weight, bias = torch.randn(2, 9, 12), torch.randn(7, 12), torch.randn(7)
    a, b = torch.randn(3, 12), torch.randn(7, 3)
    results = []
    for fast in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, a, b)]
        if fast:
            out = kernels.LoraLinear.apply(leaves[0], weight, bias, leaves[1], leaves[2], 0.5)
        else:
            out = torch.nn.functional.linear(leaves[0], weight, bias) + 0.5 * (
                leaves[0] @ leaves[1].t() @ leaves[2].t()
            )
        (out**2).sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for right, got in zip(*results, strict=True):
        assert torch.allclose(right, got, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_chunked_loss_is_cross_entropy(softcap, frozen, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 4)
    torch.manual_seed(2)
    weight, labels = torch.randn(50, 8, requires_grad=not frozen), torch.randint(0, 50, (11,))
    hidden = torch.randn(11, 8, requires_grad=True)
    shares = torch.rand(11)
    loss = kernels.head_loss(hidden, weight, labels, shares, softcap)
    loss.backward()
    copy = hidden.detach().clone().requires_grad_()
    logits = copy @ weight.detach().t()
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    right = torch.nn.functional.cross_entropy(logits, labels, reduction="none") @ shares
    right.backward()
    assert torch.allclose(loss, right) and torch.allclose(hidden.grad, copy.grad, atol=1e-6)


def test_lora_lies_on_the_language_models_projections_alone(base_of):
    names = adapter.lora_targets(adapter.load_base(base_of("gemma3n_text"), torch.float32), LoraConfig())
    assert {name.rsplit(".", 1)[1] for name in names} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert not any("k_proj" in name and ".layers.25." in name for name in names)  # shares the keys of a lower layer
    llama = adapter.load_base(base_of("llama"), torch.float32)
    assert all("self_attn" in name for name in adapter.lora_targets(llama, LoraConfig(targets="attention")))


def test_depth_tunes_the_upper_layers_and_differentiates_no_other(base_of):
    base = base_of("gemma3n_text")
    model = adapter.attach_lora(adapter.load_base(base, torch.float32), LoraConfig(rank=2, depth=0.3), 1, base.name)
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in adapter.trainable(model)}
    assert layers == set(range(21, 30))
    objective.install(model)
    objective.row_loss(model, batches.micro_batch(batches.families(conversations()))).backward()
    assert all(parameter.grad is not None for name, parameter in adapter.trainable(model).items() if "lora_B" in name)


def test_precision_follows_the_processor():
    cpu = torch.device("cpu")
    assert adapter.pick_precision(cpu, {"avx512_bf16"}).dtype == torch.bfloat16
    assert adapter.pick_precision(cpu, {"avx2", "f16c"}).dtype == torch.float32


def test_the_learning_rate_climbs_and_falls_and_is_never_zero():
    rates = [trainer.rate_factor(step, 20, 4, "cosine") for step in range(1, 21)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0] and rates[4:] == sorted(rates[4:], reverse=True)
    assert all(
        0 < trainer.rate_factor(step, 20, 4, kind) <= 1
        for step in range(1, 21)
        for kind in ("cosine", "linear", "constant")
    )
