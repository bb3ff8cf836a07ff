"""A fused decoder layer is the model's own, in value and gradient."""

from __future__ import annotations

import pytest
import torch

from pipeline.artifacts import BaseModel
from pipeline.config import LoraConfig, TrainingConfig
from pipeline.training import adapter, batches, fused, loop, native, objective
from tests.training.conftest import ARCHITECTURES, SMALL
from tests.training.test_kernels import conversations, family, tuned

WIDE = {
    "hidden_size": 96,
    "head_dim": 32,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "max_position_embeddings": 2048,
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory, tokenizer):
    """A tiny Llama of widths that the kernels take."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide")
    config = AutoConfig.for_model("llama", **(SMALL | ARCHITECTURES["llama"] | WIDE))
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return BaseModel("wide", folder, "digest-wide", "llama", "none")


def gradients(model):
    objective.install(model)
    loss = objective.row_loss(model, batches.micro_batch(batches.families([*conversations(), *family()])))
    loss.backward()
    return float(loss.detach()), {name: parameter.grad for name, parameter in adapter.trainable(model).items()}


@pytest.mark.parametrize("targets", ["all-linear", "attention"])
@pytest.mark.parametrize("depth", [1.0, 0.5])
def test_fused_layers_give_the_loss_and_gradients_of_transformers_in_fp32(compiled, wide, depth, targets):
    settings = LoraConfig(rank=32, alpha=64, depth=depth, targets=targets)
    torch.manual_seed(1)
    exact = tuned(wide, settings=settings)
    ours = tuned(wide, torch.bfloat16, settings=settings)
    with torch.no_grad():
        for mine, theirs in zip(adapter.trainable(ours).values(), adapter.trainable(exact).values(), strict=True):
            mine.copy_(theirs)
    assert fused.install(ours) == 3
    loss, grads = gradients(ours)
    native.load(None)
    expected, right = gradients(exact)
    assert loss == pytest.approx(expected, rel=2e-3)
    for name, gradient in grads.items():
        assert float((gradient - right[name]).norm() / right[name].norm()) < 0.05, name


def test_a_changed_adapter_is_taken_over_though_a_fused_optimiser_counts_no_change(compiled, wide):
    model = tuned(wide, torch.bfloat16, settings=LoraConfig(rank=32, alpha=64))
    fused.install(model)
    before, _ = gradients(model)
    torch.optim.AdamW(adapter.trainable(model).values(), lr=0.01, fused=True).step()
    assert gradients(model)[0] < before


def test_layers_that_the_kernels_cannot_compute_keep_their_own_forward(compiled, wide, base_of):
    assert fused.install(tuned(wide)) == 0  # fp32
    assert fused.install(tuned(base_of("llama"), torch.bfloat16)) == 0  # heads of 16
    assert fused.install(tuned(base_of("qwen3"), torch.bfloat16)) == 0
    dropping = tuned(wide, torch.bfloat16, settings=LoraConfig(rank=32, alpha=64, dropout=0.1))
    assert fused.install(dropping) == 0
    native.load(None)
    assert fused.install(tuned(wide, torch.bfloat16, settings=LoraConfig(rank=32, alpha=64))) == 0


def test_training_with_the_kernels_repeats_and_resumes_to_the_same_bytes(
    compiled, wide, dataset, llama, stage, tmp_path, config
):
    settings = config.model_copy(update={"lora": LoraConfig(rank=32, alpha=64, depth=0.5)})

    def run(name):
        return loop.train(
            dataset, wide, settings, seed=3, threads=1, out=tmp_path / name, stage=stage, kernels=llama.kernels
        )

    whole = run("whole")
    assert run("again").sha256 == whole.sha256
    assert adapter.pick_precision(torch.device("cpu")).dtype == torch.bfloat16
    last = max((tmp_path / "again/checkpoints").iterdir())
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    assert run("again").sha256 == whole.sha256
    without = loop.train(dataset, wide, settings, seed=3, threads=1, out=tmp_path / "plain", stage=stage)
    assert without.final_loss == pytest.approx(whole.final_loss, rel=0.05)
    assert isinstance(settings, TrainingConfig)
