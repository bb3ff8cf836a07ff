"""The proof itself is put to the test: a faithful export passes, and each planted fault is caught."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from pipeline.config import ParityConfig
from pipeline.data.chat import render
from pipeline.errors import ExportError
from pipeline.export import parity
from pipeline.export.convert import check, convert, read_fields
from pipeline.export.quantize import quantize
from tests import tiny

BOUNDS = ParityConfig(f16_mean_kl=1e-5, f16_top1=0.99)
MESSAGES = (
    {"role": "system", "content": "Role: Dungeon Master\nWorld: Testreach"},
    {"role": "user", "content": "I listen at the door – quietly, for a whole minute. Café? 12,345 rats."},
    {"role": "assistant", "content": "You hold your breath.\n\n[roll: perception]"},
    {"role": "user", "content": "<TOOLCALL>perception: 12 + 3(skill) = *15*</TOOLCALL>"},
    {"role": "assistant", "content": "Two voices, and a third that only laughs. They speak of the toll and of rain."},
)


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def exported(request, tmp_path_factory, smollm2, llama):
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = tiny.checkpoint(folder / "checkpoint", request.param, smollm2.path)
    convert(checkpoint, folder / "f16.gguf", llama, {"general.name": "tiny"})
    quantize(folder / "f16.gguf", folder / "quant.gguf", "Q8_0", llama, 1, 1e9)
    return folder


@pytest.fixture(scope="module")
def sequences(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2.path)
    rendered = render(tokenizer, MESSAGES)
    positions = [index - 1 for index, wanted in enumerate(rendered.supervised) if wanted]
    return [parity.Sequence("tests/door", MESSAGES, rendered.ids, positions)]


def prove(folder, sequences, llama, **files):
    paths = {"checkpoint": folder / "checkpoint", "f16": folder / "f16.gguf", "quant": folder / "quant.gguf"} | files
    return parity.prove(paths["checkpoint"], paths["f16"], paths["quant"], sequences, llama, BOUNDS, 1)


def test_a_faithful_export_is_proven(exported, sequences, llama):
    report = prove(exported, sequences, llama)
    assert report["f16_against_trained"]["mean_kl"] < 1e-5
    assert report["f16_against_trained"]["positions"] == len(sequences[0].positions)
    assert report["quantised_against_f16"]["top1"] > 0.9


def test_converting_twice_gives_the_same_bytes_without_paths(exported, tmp_path, llama):
    elsewhere = tmp_path / "another name"
    shutil.copytree(exported / "checkpoint", elsewhere)
    convert(elsewhere, tmp_path / "again.gguf", llama, {"general.name": "tiny"})
    content = (tmp_path / "again.gguf").read_bytes()
    assert content == (exported / "f16.gguf").read_bytes()
    assert str(tmp_path).encode() not in content


def damaged(exported, tmp_path, change):
    """A copy of the checkpoint with `change` applied to its weights."""
    copy = tmp_path / "damaged"
    shutil.copytree(exported / "checkpoint", copy)
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


def swap_q_and_k(weights):
    q = next(name for name in weights if name.endswith("0.self_attn.q_proj.weight"))
    weights[q] = weights[q].flip(0).contiguous()


def zero_a_tensor(weights):
    down = next(name for name in weights if name.endswith("0.mlp.down_proj.weight"))
    weights[down] = torch.zeros_like(weights[down])


@pytest.mark.parametrize("fault", [swap_q_and_k, zero_a_tensor])
def test_wrong_weights_are_caught(exported, tmp_path, sequences, llama, fault):
    convert(damaged(exported, tmp_path, fault), tmp_path / "f16.gguf", llama, {"general.name": "tiny"})
    with pytest.raises(ExportError, match="f16 GGUF does not behave like the trained model"):
        prove(exported, sequences, llama, f16=tmp_path / "f16.gguf")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_wrong_rope_base_is_caught(exported, tmp_path, sequences, llama):
    copy = damaged(exported, tmp_path, lambda weights: None)
    rope = json.loads((copy / "config.json").read_text())["rope_parameters"]
    wrong = {"rope_type": "default", "rope_theta": 50.0}
    edit_json(copy / "config.json", rope_parameters=wrong if "rope_theta" in rope else dict.fromkeys(rope, wrong), rope_theta=50.0)
    convert(copy, tmp_path / "f16.gguf", llama, {"general.name": "tiny"})
    with pytest.raises(ExportError, match="does not behave like"):
        prove(exported, sequences, llama, f16=tmp_path / "f16.gguf")


def test_a_dropped_tensor_is_caught(exported, tmp_path, llama, sequences):
    copy = damaged(exported, tmp_path, lambda weights: weights.pop(next(name for name in weights if name.endswith("1.mlp.up_proj.weight"))))
    with pytest.raises(ExportError):
        convert(copy, tmp_path / "f16.gguf", llama, {"general.name": "tiny"})
        prove(exported, sequences, llama, f16=tmp_path / "f16.gguf")


def test_another_template_is_caught(exported, tmp_path, llama, sequences):
    copy = damaged(exported, tmp_path, lambda weights: None)
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "<|im_end|> "))
    convert(copy, tmp_path / "f16.gguf", llama, {"general.name": "tiny"})
    with pytest.raises(ExportError, match="chat template differs"):
        check(tmp_path / "f16.gguf", exported / "checkpoint")
    with pytest.raises(ExportError, match="token"):
        parity.check_tokens(tmp_path / "f16.gguf", exported / "checkpoint", sequences, llama, 1)


def test_a_double_bos_is_caught(exported, tmp_path, llama, sequences):
    copy = damaged(exported, tmp_path, lambda weights: None)
    edit_json(copy / "tokenizer_config.json", add_bos_token=True)
    convert(copy, tmp_path / "f16.gguf", llama, {"general.name": "tiny"})
    with pytest.raises(ExportError, match="token 1 is"):
        parity.check_tokens(tmp_path / "f16.gguf", exported / "checkpoint", sequences, llama, 1)


def test_a_wrong_eos_is_caught(exported, tmp_path, llama):
    copy = damaged(exported, tmp_path, lambda weights: None)
    edit_json(copy / "tokenizer_config.json", eos_token="<|endoftext|>")
    edit_json(copy / "config.json", eos_token_id=0)
    edit_json(copy / "generation_config.json", eos_token_id=0)
    convert(copy, tmp_path / "f16.gguf", llama, {"general.name": "tiny"})
    with pytest.raises(ExportError, match="EOS"):
        check(tmp_path / "f16.gguf", exported / "checkpoint")


def test_the_report_names_the_first_other_choice(sequences):
    rows = len(sequences[0].positions)
    one = torch.randn(rows, 50).numpy()
    other = one.copy()
    other[3, :] = one[3, ::-1]
    found = parity.compare(one, other, sequences)
    assert found.first_divergence and f"token {sequences[0].positions[3]}" in found.first_divergence
    assert sum(found.histogram) == rows
    with pytest.raises(ExportError, match="first other choice: tests/door, token"):
        parity.require("a", "b", found, 1e-9, 1.0)


def test_nan_never_passes(sequences):
    rows = torch.randn(len(sequences[0].positions), 50).numpy()
    found = replace(parity.compare(rows, rows, sequences), mean_kl=float("nan"))
    with pytest.raises(ExportError):
        parity.require("a", "b", found, 1.0, 0.0)


def test_a_file_over_the_size_budget_is_refused_and_not_left(exported, tmp_path, llama):
    with pytest.raises(ExportError, match=r"more than the 1\.0 kB allowed"):
        quantize(exported / "f16.gguf", tmp_path / "big.gguf", "Q8_0", llama, 1, 1e3)
    assert list(tmp_path.iterdir()) == []


def test_metadata_is_written_as_standard_keys(exported):
    fields = read_fields(exported / "f16.gguf")
    assert fields["general.name"] == "tiny"
    assert fields["tokenizer.ggml.eos_token_id"] == 2
