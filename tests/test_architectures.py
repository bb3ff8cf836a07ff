"""Every catalogued architecture, text-only and multimodal: trains, resumes, exports, and the files behave like the model."""

import pytest
import torch
from safetensors.torch import load_file

from pipeline.bases import fetch
from pipeline.config import LoraConfig, ParityConfig, TrainingConfig
from pipeline.export import mmproj, parity
from pipeline.export.convert import convert
from pipeline.export.merge import merge
from pipeline.export.quantize import quantize
from pipeline.language_model import TOWERS
from pipeline.training import loop, trainer
from tests import gemma3n, tiny
from tests.training.conftest import conversation, write_dataset

pytestmark = pytest.mark.dear

# The mean KL of an f32 file, and of its Q8_0, after training: random weights that were trained are less calm.
# A model that learnt so little holds many tokens about equally likely: the divergence tells, which of them is first hardly.
BOUNDS = ParityConfig(f16_mean_kl=1e-5, f16_top1=0.98, quant_mean_kl=0.05, quant_top1=0.6)
CASES = [
    ("llama", "lora"),
    ("qwen3", "lora"),
    ("gemma3_text", "lora"),
    ("gemma3 with vision", "lora"),
    ("gemma3 with vision", "full"),
    ("gemma3n_text", "lora"),
    ("gemma3n with towers", "lora"),
]


def checkpoint(kind, folder, smollm2):
    if kind == "gemma3n_text":
        return gemma3n.text_only(folder)
    if kind == "gemma3n with towers":
        return gemma3n.multimodal(folder)
    if kind == "gemma3 with vision":
        gemma3n.tokenizer(folder.with_name("tokenizer"))
        return tiny.gemma3_vision(folder, folder.with_name("tokenizer"))
    return tiny.checkpoint(folder, kind, smollm2.path)


def settings(method):
    return TrainingConfig(
        method=method,
        lora=LoraConfig(rank=4, alpha=8),
        learning_rate=1e-3 if method == "lora" else 3e-4,
        batch_tokens=600,
        epochs=1.0,
        warmup_steps=1,
        checkpoint_interval=1,
        evaluations=1,
    )


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_trains_resumes_exports_and_compares(kind, method, tmp_path, smollm2, llama, stage, monkeypatch):
    base = fetch.ensure(str(checkpoint(kind, tmp_path / "base", smollm2)), tmp_path, stage)
    assert base.multimodal == ("with" in kind)
    items = [conversation(number, turns=3) for number in range(9)] + [
        conversation(100, "dev"),
        conversation(200, "test", 4),
    ]
    dataset = write_dataset(tmp_path / "data" / "dataset.jsonl", items)
    whole = train(dataset, base, method, tmp_path / "whole", stage)
    real = trainer.ForgeTrainer.training_step

    def dies(self, model, step, *rest):
        if step.number == 2:
            raise OSError("the power went")
        return real(self, model, step, *rest)

    monkeypatch.setattr(trainer.ForgeTrainer, "training_step", dies)
    with pytest.raises(OSError, match="power"):
        train(dataset, base, method, tmp_path / "cut", stage)
    monkeypatch.undo()
    assert train(dataset, base, method, tmp_path / "cut", stage).sha256 == whole.sha256
    changed = merge(base.path, whole.path, tmp_path / "merged")
    require_towers_untouched(base.path, tmp_path / "merged", changed)
    f32, q8 = tmp_path / "f32.gguf", tmp_path / "Q8_0.gguf"
    convert(tmp_path / "merged", f32, llama, {"general.name": "tiny"}, outtype="f32")
    quantize(f32, q8, "Q8_0", llama, 1, 1e9)
    sequences = parity.sequences(base.path, dataset, 1)
    report = parity.prove(tmp_path / "merged", f32, q8, sequences, llama, BOUNDS, 1)
    assert report["tokens_equal"] == len(sequences[0].ids)
    before, after = (list(parity.trained_logits(folder, sequences)) for folder in (base.path, tmp_path / "merged"))
    assert parity.compare(before, after, sequences).mean_kl > 1e-3  # training does something
    path, told = mmproj.export(tmp_path / "merged", q8, tmp_path / "mmproj.gguf", llama, {"general.name": "tiny"}, 1)
    assert (path is not None) == base.multimodal and ("two test pictures read" in told) == base.multimodal


def train(dataset, base, method, out, stage):
    return loop.train(dataset, base, settings(method), seed=7, threads=1, out=out, stage=stage)


def require_towers_untouched(base, merged, changed):
    """What training names by the text-only class is found under the checkpoint's own names, and nothing else is touched."""
    before, after = (load_file(folder / "model.safetensors") for folder in (base, merged))
    assert list(before) == list(after)
    different = {name for name in before if not torch.equal(before[name], after[name])}
    assert 0 < len(different) <= changed
    assert not [name for name in different if TOWERS.search(name) or "embed" in name]
    assert not [name for name in different if ".layers." not in name and not name.endswith("norm.weight")]
