"""The proof itself is put to the test: a faithful export passes, and each planted fault is caught."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from bench import sizes
from pipeline.artifacts import Dataset
from pipeline.bases.memory import Shape
from pipeline.config import ParityConfig
from pipeline.data.chat import render
from pipeline.data.dataset import Conversation, to_jsonl
from pipeline.errors import ExportError
from pipeline.export import parity
from pipeline.export.convert import check, convert
from pipeline.export.quantize import quantize
from pipeline.export.reference import require_memory
from pipeline.gguf_file import read_head
from pipeline.llama_server import serve
from tests import tiny
from tests.export import planted

BOUNDS = ParityConfig(f16_mean_kl=1e-5, f16_top1=0.99)
MESSAGES = (
    {"role": "system", "content": "Role: Dungeon Master\nWorld: Testreach"},
    {"role": "user", "content": "I listen at the door – quietly, for a whole minute. Café? 12,345 rats."},
    {"role": "assistant", "content": "You hold your breath.\n\n[roll: perception]"},
    {"role": "user", "content": "<TOOLCALL>perception: 12 + 3(skill) = *15*</TOOLCALL>"},
    {"role": "assistant", "content": "Two voices, and a third that only laughs. They speak of the toll and of rain."},
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, smollm2, llama):
    return export(tmp_path_factory.mktemp("llama"), "llama", smollm2, llama, None)


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def exported(request, tmp_path_factory, plain, smollm2, llama):
    """Llama in f16, the others in f32: the strictest comparison, as in 16 bits llama.cpp rounds activations too."""
    if request.param == "llama":
        return plain
    return export(tmp_path_factory.mktemp(request.param), request.param, smollm2, llama, "f32")


def export(folder, architecture, smollm2, llama, outtype):
    checkpoint = tiny.checkpoint(folder / "checkpoint", architecture, smollm2.path)
    convert(checkpoint, folder / "f16.gguf", llama, {"general.name": "tiny"}, outtype=outtype)
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


def test_the_proof_takes_drills_and_scenarios_in_turn(smollm2, tmp_path):
    kinds = {"drills": 3, "scenario": 2}
    held_out = [
        Conversation(f"{kind}/{number}", "x.md", 1, kind, kind, "test", 1.0, MESSAGES)
        for kind, count in kinds.items()
        for number in range(count)
    ]
    path = tmp_path / "dataset.jsonl"
    path.write_text(to_jsonl(held_out))
    dataset = Dataset(path, path, "")
    names = [one.name for one in parity.sequences(smollm2.path, dataset, 4)]
    assert names == ["drills/0", "scenario/0", "drills/1", "scenario/1"]
    assert [one.id for one in parity.in_turn(held_out)][4:] == ["drills/2"]


def test_a_faithful_export_is_proven(exported, sequences, llama):
    report = prove(exported, sequences, llama)
    assert report["f16_against_trained"]["mean_kl"] < (1e-5 if exported.name.startswith("llama") else 1e-6)
    assert report["f16_against_trained"]["positions"] == len(sequences[0].positions)
    assert report["tokens_equal"] == len(sequences[0].ids)


def test_converting_twice_gives_the_same_bytes_without_paths(plain, tmp_path, llama):
    elsewhere = tmp_path / "another name"
    shutil.copytree(plain / "checkpoint", elsewhere)
    convert(elsewhere, tmp_path / "again.gguf", llama, {"general.name": "tiny"})
    content = (tmp_path / "again.gguf").read_bytes()
    assert content == (plain / "f16.gguf").read_bytes()
    assert str(tmp_path).encode() not in content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.gguf", "another name"]


def test_the_size_table_knows_every_tensor(exported):
    """docs/bases.md counts files from these names and shapes."""
    config = json.loads((exported / "checkpoint/config.json").read_text())
    keys = (
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    )
    names = ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim")
    shape = Shape(vocab=config["vocab_size"], **{name: config[key] for name, key in zip(names, keys, strict=True)})
    counted = dict(sizes.tensors(sizes.NAMES[config["model_type"]], shape))
    if not config["tie_word_embeddings"]:
        counted["output.weight"] = counted["token_embd.weight"]
    assert {tensor.name: tensor.shape for tensor in read_head(exported / "f16.gguf").tensors} == counted


def wrong_rope_base(gguf):
    for key in read_head(gguf).fields:
        if ".rope.freq_base" in key:
            planted.set_number(gguf, key, "f", 50.0)


def swapped_q_and_k(gguf):
    for layer in range(2):
        planted.exchange(gguf, f"blk.{layer}.attn_q.weight", f"blk.{layer}.attn_k.weight")


def exchanged_layers(gguf):
    planted.exchange(gguf, "blk.0.attn_q.weight", "blk.1.attn_q.weight")


def zeroed_tensor(gguf):
    planted.zero(gguf, "blk.0.ffn_down.weight")


def dropped_tensor(gguf):
    planted.replace_text(gguf, b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight")


@pytest.mark.parametrize("fault", [wrong_rope_base, exchanged_layers, zeroed_tensor, dropped_tensor])
def test_a_planted_fault_is_caught_on_every_architecture(exported, tmp_path, sequences, llama, fault):
    bad = planted.copy(exported / "f16.gguf", tmp_path)
    fault(bad)
    with pytest.raises(ExportError, match=r"f16 GGUF does not behave like the trained model|cannot compute"):
        compare_f16(exported, bad, tmp_path, sequences, llama)


def compare_f16(folder, f16, tmp_path, sequences, llama):
    exact = parity.llama_logits(f16, sequences, llama, 1, "f32", tmp_path / "reply")
    found = parity.compare(parity.trained_logits(folder / "checkpoint", sequences), exact, sequences)
    parity.require("the f16 GGUF", "the trained model", found, BOUNDS.f16_mean_kl, BOUNDS.f16_top1)


def test_swapped_q_and_k_are_caught(plain, tmp_path, sequences, llama):
    bad = planted.copy(plain / "f16.gguf", tmp_path)
    swapped_q_and_k(bad)
    with pytest.raises(ExportError, match="f16 GGUF does not behave like the trained model"):
        prove(plain, sequences, llama, f16=bad)


def test_a_ruined_quantisation_is_caught(plain, tmp_path, sequences, llama):
    bad = planted.copy(plain / "quant.gguf", tmp_path)
    zeroed_tensor(bad)
    with pytest.raises(ExportError, match="quantised GGUF does not behave like the f16 GGUF"):
        prove(plain, sequences, llama, quant=bad)


def test_another_template_is_caught(plain, tmp_path, llama, sequences):
    bad = planted.copy(plain / "f16.gguf", tmp_path)
    planted.replace_text(bad, b"message['content'] + '<|im_end|>'", b"message['content'] + '<|im_end|\n'")
    with pytest.raises(ExportError, match="chat template differs"):
        check(bad, plain / "checkpoint")
    with pytest.raises(ExportError, match="token"):
        parity.check_tokens(bad, plain / "checkpoint", sequences, llama, 1)


def test_a_double_bos_is_caught(plain, tmp_path, llama, sequences):
    bad = planted.copy(plain / "f16.gguf", tmp_path)
    planted.set_number(bad, "tokenizer.ggml.add_bos_token", "?", True)
    with pytest.raises(ExportError, match="what stands before every text: token 0 is \\[\\] in training but \\[1\\]"):
        parity.check_tokens(bad, plain / "checkpoint", sequences, llama, 1)


def test_a_wrong_eos_is_caught(plain, tmp_path, llama, sequences):
    bad = planted.copy(plain / "f16.gguf", tmp_path)
    planted.set_number(bad, "tokenizer.ggml.eos_token_id", "I", 0)
    with pytest.raises(ExportError, match="the EOS is token 0, the base's is 2"):
        check(bad, plain / "checkpoint")


def test_only_the_end_of_turn_token_ends_a_reply(plain, llama, sequences):
    with serve(llama, plain / "f16.gguf", threads=1, context=64) as server:
        parity.require_end(server, plain / "f16.gguf", 2)
        with pytest.raises(ExportError, match="does not end a reply at token 40"):
            parity.require_end(server, plain / "f16.gguf", 40)


def test_a_template_token_that_became_text_is_caught(plain, tmp_path, llama):
    bad = planted.copy(plain / "f16.gguf", tmp_path)
    planted.set_number(bad, "tokenizer.ggml.token_type", "i", 1, skip=12 + 4)
    with pytest.raises(ExportError, match=r"token 1, '<\|im_start\|>', is ordinary text"):
        check(bad, plain / "checkpoint")


def test_the_report_names_the_first_other_choice(sequences):
    rows = len(sequences[0].positions)
    one = torch.randn(rows, 50).numpy()
    other = one.copy()
    other[3, :] = one[3, ::-1]
    found = parity.compare([one], [other], sequences)
    assert found.first_divergence and f"token {sequences[0].positions[3]}" in found.first_divergence
    assert sum(found.histogram) == rows
    with pytest.raises(ExportError, match="first other choice: tests/door, token"):
        parity.require("a", "b", found, 1e-9, 1.0)


def test_too_little_memory_is_told_before_the_model_is_loaded(plain, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1_000_000))
    with pytest.raises(ExportError, match=r"needs 12\.9 MB of memory .* 1\.0 MB are free"):
        require_memory(plain / "checkpoint")


def test_nan_never_passes(sequences):
    rows = torch.randn(len(sequences[0].positions), 50).numpy()
    found = replace(parity.compare([rows], [rows], sequences), mean_kl=float("nan"))
    with pytest.raises(ExportError):
        parity.require("a", "b", found, 1.0, 0.0)


def test_a_file_over_the_size_budget_is_refused_and_not_left(plain, tmp_path, llama):
    with pytest.raises(ExportError, match=r"more than the 1\.0 kB allowed"):
        quantize(plain / "f16.gguf", tmp_path / "big.gguf", "Q8_0", llama, 1, 1e3)
    assert list(tmp_path.iterdir()) == []


def test_metadata_is_written_as_standard_keys(plain):
    fields = read_head(plain / "f16.gguf").fields
    assert fields["general.name"] == "tiny"
    assert fields["tokenizer.ggml.eos_token_id"] == 2
