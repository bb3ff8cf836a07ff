from __future__ import annotations

import pytest
import torch

from pipeline.config import LoraConfig
from pipeline.training import adapter, batches, frozen, loop, objective, trainer
from pipeline.training.batches import Step
from pipeline.training.frozen import FrozenLayers
from tests.training.test_kernels import conversations, family


def upper_half(base):
    config = LoraConfig(rank=4, alpha=8, depth=0.5)
    model = adapter.attach_lora(adapter.load_base(base, torch.float32), config, 3, base.name)
    with torch.no_grad():
        for parameter in adapter.trainable(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    objective.install(model)
    return model


def steps(epochs):
    drawn = batches.families([*conversations(), *family()])
    return [Step(number, tuple(drawn)) for number in range(1, epochs + 1)]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text"])
def test_kept_states_give_the_loss_and_the_gradients_of_the_whole_decoder(architecture, base_of):
    model, drawn = upper_half(base_of(architecture)), steps(2)
    row = drawn[0].families
    parts = FrozenLayers(model, drawn)
    found = []
    for states in (None, parts.states(row), parts.states(row)):
        model.zero_grad()
        if states is None:
            loss = objective.row_loss(model, batches.micro_batch(row))
        else:
            with parts.skipped():
                loss = objective.row_loss(model, batches.micro_batch(row), states)
        loss.backward()
        gradients = [parameter.grad.clone() for parameter in adapter.trainable(model).values()]
        found.append((float(loss.detach()), gradients))
    (whole, expected), *others = found
    for loss, gradients in others:
        assert loss == pytest.approx(whole, rel=1e-5)
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(gradients, expected, strict=True))
    assert float(objective.row_loss(model, batches.micro_batch(row)).detach()) == pytest.approx(whole, rel=1e-6)


def test_states_are_computed_once_and_forgotten_after_the_last_epoch(base_of, monkeypatch):
    model, drawn = upper_half(base_of("llama")), steps(3)
    parts, passes = FrozenLayers(model, drawn), []
    model.get_base_model().get_decoder().layers[0].register_forward_hook(lambda *_: passes.append(1))
    first = parts.states(drawn[0].families)
    for step in drawn[:2]:
        assert torch.equal(parts.states(step.families), first)
        parts.forget(step)
    assert len(passes) == len(drawn[0].families)
    parts.forget(drawn[2])
    assert parts._kept == {}


def test_only_families_that_come_again_need_room():
    once, again = batches.families(conversations())[:2]
    assert frozen.repeated_tokens([Step(1, (once, again)), Step(2, (again,))]) == again.tokens


def test_a_run_with_kept_states_resumes_to_the_same_bytes(base_of, dataset, config, tmp_path, stage, monkeypatch):
    config = config.model_copy(update={"lora": LoraConfig(rank=4, alpha=8, depth=0.5)})
    base = base_of("llama")

    def run(out):
        return loop.train(dataset, base, config, seed=7, threads=1, out=out, stage=stage)

    whole = run(tmp_path / "whole")
    measured, passes = trainer.ForgeTrainer.training_step, []

    def dies(self, model, step, *rest):
        passes.append(self._frozen is not None)
        if step.number == 4:
            raise OSError("the power went")
        return measured(self, model, step, *rest)

    monkeypatch.setattr(trainer.ForgeTrainer, "training_step", dies)
    with pytest.raises(OSError, match="power"):
        run(tmp_path / "broken")
    monkeypatch.undo()
    assert passes == [True] * 4
    assert run(tmp_path / "broken").sha256 == whole.sha256
