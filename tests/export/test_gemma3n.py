"""The mission's architecture, from adapter to quantised file, over a conversation longer than the sliding window."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from bench import sizes
from pipeline.bases.memory import Shape
from pipeline.config import LoraConfig, ParityConfig
from pipeline.data.chat import render
from pipeline.errors import ExportError
from pipeline.export import mmproj, parity
from pipeline.export.convert import convert
from pipeline.export.merge import merge, tensor_slots
from pipeline.export.quantize import quantize
from pipeline.export.reference import language_model
from pipeline.gguf_file import read_head
from pipeline.training import adapter as lora
from tests import gemma3n
from tests.export import planted
from tests.export.test_parity import MESSAGES

BOUNDS = ParityConfig(f16_mean_kl=1e-6, f16_top1=0.97, quant_mean_kl=0.05, quant_top1=0.8)
PREFIX = {"text-only": "model.", "multimodal": "model.language_model."}


@pytest.fixture(scope="module", params=["text-only", pytest.param("multimodal", marks=pytest.mark.dear)])
def journey(request, tmp_path_factory, llama):
    """base → adapter → merged → f32 GGUF → Q8_0, as in a run; the folder's name says which kind."""
    folder = tmp_path_factory.mktemp(request.param)
    base = (gemma3n.text_only if request.param == "text-only" else gemma3n.multimodal)(folder / "base")
    train(base, folder / "adapter")
    merge(base, folder / "adapter", folder / "merged")
    convert(folder / "merged", folder / "f32.gguf", llama, {"general.name": "tiny"}, outtype="f32")
    return folder


def train(base, out):
    """LoRA where training puts it, with random values."""
    tuned = lora.attach_lora(language_model(base), LoraConfig(rank=4, alpha=8), 0, "tiny")
    torch.manual_seed(2)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.02 * torch.randn_like(weight))
    lora.save(tuned, lora.weights(tuned), out)


@pytest.fixture(scope="module")
def sequences(journey):
    rendered = render(AutoTokenizer.from_pretrained(journey / "base"), MESSAGES)
    positions = [index - 1 for index, wanted in enumerate(rendered.supervised) if wanted]
    assert len(rendered.ids) > 4 * gemma3n.WINDOW and positions[-1] > gemma3n.WINDOW * 4
    return [parity.Sequence("tests/door", MESSAGES, rendered.ids, positions)]


def kind(journey):
    return journey.name.rstrip("0123456789")


def test_the_whole_road_agrees_to_a_millionth_of_a_nat(journey, sequences, llama):
    quantize(journey / "f32.gguf", journey / "Q8_0.gguf", "Q8_0", llama, 1, 1e9)
    report = parity.prove(journey / "merged", journey / "f32.gguf", journey / "Q8_0.gguf", sequences, llama, BOUNDS, 1)
    assert report["f16_against_trained"]["max_kl"] < 1e-5
    before = list(parity.trained_logits(journey / "base", sequences))
    after = list(parity.trained_logits(journey / "merged", sequences))
    assert parity.compare(before, after, sequences).mean_kl > 1e-3  # the adapter does something


def test_merging_keeps_what_the_library_never_loads(journey):
    before, after = load_file(journey / "base/model.safetensors"), load_file(journey / "merged/model.safetensors")
    assert list(before) == list(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    shared = {f"{PREFIX[kind(journey)]}layers.{layer}.self_attn.k_proj.weight" for layer in range(20, 30)}
    assert shared <= set(before) and not shared & changed
    assert changed and all(".layers." in name for name in changed)
    assert not any(word in name for name in changed for word in ("vision", "audio", "altup", "laurel", "per_layer"))


def test_the_size_table_knows_every_tensor(journey):
    numbers = {
        "layers": 30,
        "hidden": 64,
        "intermediate": 4096,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "vocab": 1024,
    }
    extra = {"per_layer_width": 256, "per_layer_vocab": 1024, "laurel_rank": 64, "altup_inputs": 4}
    counted = dict(sizes.tensors("gemma3n", Shape(**numbers, **extra)))
    assert {tensor.name: tensor.shape for tensor in read_head(journey / "f32.gguf").tensors} == counted


def test_tensors_dropped_by_saving_from_memory_are_caught(journey, sequences, llama, tmp_path):
    bad = planted.copy(journey / "f32.gguf", tmp_path)
    planted.replace_text(bad, b"blk.20.attn_k.weight", b"blk.20.attn_x.weight")
    with pytest.raises(ExportError, match=r"cannot compute.*"):
        parity.llama_logits(bad, sequences, llama, 1, "f32", tmp_path / "reply")


@pytest.mark.parametrize(
    ("key", "code", "value"),
    [
        ("gemma3n.attention.sliding_window", "I", 16),
        ("gemma3n.rope.freq_base", "f", 10_000.0),
        ("gemma3n.attention.layer_norm_rms_epsilon", "f", 0.01),
    ],
)
def test_a_wrong_number_is_caught(journey, sequences, llama, tmp_path, key, code, value):
    bad = planted.copy(journey / "f32.gguf", tmp_path)
    planted.set_number(bad, key, code, value)
    found = parity.compare(
        parity.trained_logits(journey / "merged", sequences),
        parity.llama_logits(bad, sequences, llama, 1, "f32", tmp_path / "reply"),
        sequences,
    )
    with pytest.raises(ExportError, match="does not behave like"):
        parity.require("the f32 GGUF", "the trained model", found, BOUNDS.f16_mean_kl, BOUNDS.f16_top1)


def test_the_projector_is_made_only_where_there_is_a_vision_tower(journey, llama, tmp_path):
    metadata = {"general.name": "tiny", "general.basename": "tiny"}
    path, told = mmproj.export(journey / "merged", journey / "f32.gguf", tmp_path / "mmproj.gguf", llama, metadata, 1)
    if kind(journey) == "text-only":
        assert path is None and told == "tiny reads text only"
        return
    assert path == tmp_path / "mmproj.gguf" and told == "two test pictures read, 258 tokens each"
    assert not [tensor.name for tensor in read_head(path).tensors if tensor.name.startswith("a.")]
    assert [entry.name for entry in tmp_path.iterdir()] == ["mmproj.gguf"]
    planted.zero(path, "mm.input_projection.weight")
    with pytest.raises(ExportError, match="the projector passes nothing on"):
        mmproj.prove(journey / "f32.gguf", path, llama, 1)


def test_a_multimodal_config_without_towers_gives_a_reason(journey, llama, tmp_path):
    if kind(journey) == "text-only":
        return
    copy = tmp_path / "towerless"
    shutil.copytree(journey / "merged", copy)
    weights = load_file(copy / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if "vision" not in name},
        copy / "model.safetensors",
        {"format": "pt"},
    )
    path, told = mmproj.export(copy, journey / "f32.gguf", tmp_path / "mmproj.gguf", llama, {}, 1)
    assert path is None and "holds no vision tower" in told
    assert len(tensor_slots(copy)) < len(weights)
