from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import TrainingConfig
from pipeline.errors import DataError, TrainingError
from pipeline.training import interrupt, loop, objective, trainer
from pipeline.training.batches import Family, Sample, Step
from tests.training.conftest import ARCHITECTURES, conversation, write_dataset

ROOT = Path(__file__).resolve().parents[2]


def run(dataset, base, config, out, stage, seed=7):
    return loop.train(dataset, base, config, seed=seed, threads=1, out=out, stage=stage)


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_learns_and_a_resumed_run_ends_in_the_same_bytes(
    architecture, base_of, dataset, config, tmp_path, stage, monkeypatch
):
    base = base_of(architecture)
    if architecture == "gemma3n_text":
        config = config.model_copy(update={"epochs": 1.0})
    whole = run(dataset, base, config, tmp_path / "whole", stage)
    losses = [entry["loss"] for entry in metrics(tmp_path / "whole")]
    assert losses[-1] < losses[0] - 0.1

    measured = trainer.ForgeTrainer.training_step

    def dies(self, model, step, *rest):
        if step.number == 4:
            raise OSError("the power went")
        return measured(self, model, step, *rest)

    monkeypatch.setattr(trainer.ForgeTrainer, "training_step", dies)
    with pytest.raises(OSError, match="power"):
        run(dataset, base, config, tmp_path / "broken", stage)
    monkeypatch.undo()
    assert {folder.name for folder in (tmp_path / "broken/checkpoints").iterdir()} >= {"checkpoint-000002"}
    resumed = run(dataset, base, config, tmp_path / "broken", stage)
    assert resumed.sha256 == whole.sha256
    assert [entry["loss"] for entry in metrics(tmp_path / "broken")] == losses


def test_the_adapter_is_peft_form_and_names_no_path(base_of, dataset, config, tmp_path, stage):
    base = base_of("llama")
    result = run(dataset, base, config.model_copy(update={"epochs": 1.0}), tmp_path, stage)
    settings = (result.path / "adapter_config.json").read_text()
    assert json.loads(settings)["base_model_name_or_path"] == "llama" and str(base.path) not in settings
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.path), result.path)
    tensors = load_file(result.path / "adapter_model.safetensors")
    loaded = {name.replace(".default.", "."): value for name, value in model.named_parameters() if "lora_" in name}
    assert loaded.keys() == tensors.keys() and len(tensors) == 2 * 2 * 7
    assert all(torch.equal(tensors[name], loaded[name]) for name in tensors)


def test_another_seed_gives_another_adapter(base_of, dataset, config, tmp_path, stage):
    config = config.model_copy(update={"epochs": 1.0, "evaluations": 1})
    first = run(dataset, base_of("llama"), config, tmp_path / "a", stage, seed=1)
    second = run(dataset, base_of("llama"), config, tmp_path / "b", stage, seed=2)
    assert first.sha256 != second.sha256


def test_a_run_killed_at_any_moment_ends_in_the_same_bytes(base_of, dataset, config, tmp_path, stage):
    base = base_of("llama")
    whole = run(dataset, base, config, tmp_path / "whole", stage)
    out = tmp_path / "killed"
    program = (
        "import sys, torch; from pathlib import Path; from pipeline.config import *; from pipeline.artifacts import *;"
        "from pipeline.progress import Reporter; from pipeline.training import loop, trainer; import time;"
        "old = trainer.ForgeTrainer.training_step;"
        "trainer.ForgeTrainer.training_step = lambda *a: (time.sleep(0.3), old(*a))[1];"
        f"d = Path({str(dataset.conversations)!r}); b = Path({str(base.path)!r});"
        f"c = TrainingConfig.model_validate_json({config.model_dump_json()!r});"
        "s = Reporter('plain', quiet=True).stage('t').__enter__();"
        f"loop.train(Dataset(d, d, 'd'), BaseModel('llama', b, 'digest-llama', 'llama', 'none'), c, seed=7, threads=1,"
        f" out=Path({str(out)!r}), stage=s)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or len(metrics_lines(out)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert run(dataset, base, config, out, stage).sha256 == whole.sha256
    assert [e["loss"] for e in metrics(out)] == [e["loss"] for e in metrics(tmp_path / "whole")]


def metrics_lines(out):
    return (out / "metrics.jsonl").read_text().splitlines()


def test_out_of_memory_halves_the_rows_and_loses_no_step(base_of, dataset, config, tmp_path, stage, monkeypatch):
    run(dataset, base_of("llama"), config, tmp_path / "calm", stage)
    real, seen = objective.row_loss, []

    def crowded(model, batch):
        seen.append(batch.input_ids.shape[1])
        if batch.input_ids.shape[1] > 200:
            raise torch.OutOfMemoryError("planted")
        return real(model, batch)

    monkeypatch.setattr(objective, "row_loss", crowded)
    run(dataset, base_of("llama"), config, tmp_path / "crowded", stage)
    assert max(seen) > 200 and seen[-1] <= 200
    crowded_steps, calm_steps = metrics(tmp_path / "crowded"), metrics(tmp_path / "calm")
    assert [e["tokens"] for e in crowded_steps] == [e["tokens"] for e in calm_steps]
    for one, other in zip(crowded_steps[:8], calm_steps[:8], strict=True):  # then rounding has its way
        assert math.isclose(one["loss"], other["loss"], rel_tol=1e-3)


def test_a_conversation_that_never_fits_is_an_explained_failure(base_of, dataset, config, tmp_path, stage, monkeypatch):
    def full(model, batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(objective, "row_loss", full)
    with pytest.raises(TrainingError, match="does not fit into memory"):
        run(dataset, base_of("llama"), config, tmp_path, stage)


def test_a_nan_halts_with_the_step_and_the_conversations(base_of, dataset, config, tmp_path, stage, monkeypatch):
    real, calls = objective.row_loss, []

    def poisoned(model, batch):
        calls.append(1)
        return real(model, batch) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(objective, "row_loss", poisoned)
    with pytest.raises(TrainingError, match="nan") as caught:
        run(dataset, base_of("llama"), config, tmp_path, stage)
    assert "step 3" in str(caught.value) and "test/c" in str(caught.value)


def test_a_leaping_loss_halts(base_of, dataset, config, tmp_path, stage, monkeypatch):
    real, calls = objective.row_loss, []

    def leaping(model, batch):
        calls.append(1)
        return real(model, batch) * (50 if len(calls) > 7 else 1)

    monkeypatch.setattr(objective, "row_loss", leaping)
    with pytest.raises(TrainingError, match="leapt"):
        run(dataset, base_of("llama"), config, tmp_path, stage)


def test_a_hard_step_among_easy_ones_is_no_leap():
    losses = [2.2, *[0.1] * 60]  # one on an author's prose, many on the choice of a call alone
    journal = SimpleNamespace(entries=[{"loss": loss} for loss in losses])
    training = SimpleNamespace(session=SimpleNamespace(journal=journal))
    step = Step(62, (Family((Sample("c", (1, 2), (1,), (1.0,)),)),))
    trainer.ForgeTrainer._guard(training, step, 2.6, 1.0)
    with pytest.raises(TrainingError, match="leapt to 9"):
        trainer.ForgeTrainer._guard(training, step, 9.0, 1.0)


def test_training_stops_early_and_keeps_the_best(base_of, dataset, config, tmp_path, stage, monkeypatch):
    planned = iter([3.0, 2.0, 2.5, 2.6, 1.0, 1.0])
    monkeypatch.setattr(objective, "held_out_loss", lambda *_: next(planned))
    config = config.model_copy(update={"early_stopping_patience": 2, "evaluations": 6})
    result = run(dataset, base_of("llama"), config, tmp_path, stage)
    entries = metrics(tmp_path)
    measured = [entry for entry in entries if "held_out_loss" in entry]
    assert [entry["held_out_loss"] for entry in measured] == [3.0, 2.0, 2.5, 2.6]
    assert result.held_out_loss == 2.0 and result.steps == measured[1]["step"] < entries[-1]["step"]
    again = run(dataset, base_of("llama"), config, tmp_path, stage)
    assert again.sha256 == result.sha256 and len(metrics(tmp_path)) == len(entries)


def test_an_interrupt_keeps_the_last_step(base_of, dataset, config, tmp_path, stage, monkeypatch):
    whole = run(dataset, base_of("llama"), config, tmp_path / "whole", stage)
    real = trainer.ForgeTrainer.training_step

    def interrupted(self, model, step, *rest):
        if step.number == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, model, step, *rest)

    monkeypatch.setattr(trainer.ForgeTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, base_of("llama"), config, tmp_path / "cut", stage)
    monkeypatch.undo()
    assert (tmp_path / "cut/checkpoints/checkpoint-000003").is_dir()
    assert run(dataset, base_of("llama"), config, tmp_path / "cut", stage).sha256 == whole.sha256


def test_sigterm_is_deferred_and_keeps_the_last_step(base_of, dataset, config, tmp_path, stage, monkeypatch):
    config = config.model_copy(update={"epochs": 1.0})
    real = trainer.ForgeTrainer._held_out

    def stopped(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as cli.main does
    try:
        monkeypatch.setattr(trainer.ForgeTrainer, "_held_out", stopped)
        with pytest.raises(interrupt.BetweenRows):
            run(dataset, base_of("llama"), config, tmp_path, stage)
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "held_out_loss" in metrics(tmp_path)[-1]


def test_a_second_signal_of_either_kind_is_obeyed_at_once():
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(KeyboardInterrupt, match="at once"), interrupt.deferred() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked()
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt as second:
                raise KeyboardInterrupt("at once") from second
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(("owner", "name"), [(trainer.ForgeTrainer, "_held_out"), (torch.optim.AdamW, "step")])
def test_an_interrupt_within_a_measurement_or_an_update_changes_no_byte(
    owner, name, base_of, dataset, config, tmp_path, stage, monkeypatch
):
    config = config.model_copy(update={"checkpoint_interval": 1})
    whole = run(dataset, base_of("llama"), config, tmp_path / "whole", stage)
    real, calls = getattr(owner, name), []

    def cut(self, *rest, **named):
        calls.append(1)
        if len(calls) == 2:
            real(self, *rest, **named)
            raise KeyboardInterrupt  # a second Ctrl-C may come at any bytecode
        return real(self, *rest, **named)

    monkeypatch.setattr(owner, name, cut)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, base_of("llama"), config, tmp_path / "cut", stage)
    monkeypatch.undo()
    assert run(dataset, base_of("llama"), config, tmp_path / "cut", stage).sha256 == whole.sha256
    assert [(entry["step"], entry["loss"], entry.get("held_out_loss")) for entry in metrics(tmp_path / "cut")] == [
        (entry["step"], entry["loss"], entry.get("held_out_loss")) for entry in metrics(tmp_path / "whole")
    ]


def test_an_interrupt_after_the_last_row_is_obeyed_too(base_of, dataset, config, tmp_path, stage, monkeypatch):
    config = config.model_copy(update={"epochs": 1.0})
    real = trainer.ForgeTrainer._report

    def interrupted(self, entry):
        if entry["step"] == len(self.session.steps):
            os.kill(os.getpid(), signal.SIGINT)
        real(self, entry)

    monkeypatch.setattr(trainer.ForgeTrainer, "_report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, base_of("llama"), config, tmp_path, stage)
    monkeypatch.undo()
    steps = len(metrics(tmp_path))
    assert run(dataset, base_of("llama"), config, tmp_path, stage).steps == steps == len(metrics(tmp_path))


def test_a_checkpoint_of_other_data_is_not_resumed(base_of, dataset, config, tmp_path, stage):
    config = config.model_copy(update={"epochs": 1.0})
    other = write_dataset(tmp_path / "other.jsonl", [conversation(number, turns=3) for number in range(20, 30)])
    fresh = run(other, base_of("llama"), config, tmp_path / "fresh", stage)
    run(dataset, base_of("llama"), config, tmp_path / "used", stage)
    assert run(other, base_of("llama"), config, tmp_path / "used", stage).sha256 == fresh.sha256


def test_a_run_goes_on_from_an_earlier_adapter(base_of, dataset, config, tmp_path, stage):
    config = config.model_copy(update={"epochs": 1.0, "evaluations": 1})
    first = run(dataset, base_of("llama"), config, tmp_path / "first", stage)
    more = write_dataset(tmp_path / "more.jsonl", [conversation(number, turns=2) for number in range(30, 36)])
    settings = {"seed": 7, "threads": 1, "stage": stage, "start": first.path}
    second = loop.train(more, base_of("llama"), config, out=tmp_path / "second", **settings)
    fresh = run(more, base_of("llama"), config, tmp_path / "fresh", stage)
    assert metrics(tmp_path / "second")[0]["loss"] < metrics(tmp_path / "fresh")[0]["loss"] - 0.1
    assert second.sha256 not in (first.sha256, fresh.sha256)
    other = config.model_copy(update={"lora": config.lora.model_copy(update={"rank": 2})})
    with pytest.raises(TrainingError, match="another model's"):
        loop.train(more, base_of("llama"), other, out=tmp_path / "third", **settings)


def test_too_long_conversations_are_all_named_before_training(base_of, config, tmp_path, stage):
    data = write_dataset(tmp_path / "d.jsonl", [conversation(0), conversation(1, turns=30), conversation(2, turns=30)])
    with pytest.raises(DataError, match="2 of 3") as caught:
        run(data, base_of("llama"), config, tmp_path, stage)
    assert "training_data/test.md:2" in str(caught.value) and "max_seq_length = 256" in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()


def test_full_fine_tuning_of_a_small_base_learns(base_of, dataset, tmp_path, stage):
    config = TrainingConfig(method="full", learning_rate=3e-3, batch_tokens=256, warmup_steps=1, max_seq_length=256)
    result = run(dataset, base_of("llama"), config, tmp_path, stage)
    losses = [entry["loss"] for entry in metrics(tmp_path)]
    assert losses[-1] < losses[0]
    assert [path.name for path in result.path.iterdir()] == ["adapter_model.safetensors"]
    names = load_file(result.path / "adapter_model.safetensors").keys()
    assert "model.layers.0.mlp.up_proj.weight" in names and not any("embed" in name for name in names)


def test_how_threads_wait_is_set_before_torch_is_imported():
    program = "import sys, os, pipeline.training; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    clean = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=clean, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == ["3000", "False"]
