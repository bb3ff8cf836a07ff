"""Our reading of a GGUF against the library's own: every weight equal, the same tokens, the same bytes each time."""

import numpy as np
import pytest

from pipeline import files
from pipeline.bases import tokenizer_files
from pipeline.bases.dequantise import dequantise
from pipeline.bases.gguf_file import GgufFile
from pipeline.errors import BaseModelError, PipelineError
from tests.bases import small

TALK = [
    {"role": "system", "content": "World: X"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "he  \n\nhell [roll: a]"},
]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def unpacked(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    source = small.gguf(folder / "base.gguf", request.param)
    out = folder / "out"
    out.mkdir()
    dequantise(source, out)
    return request.param, source, out


def test_every_weight_equals_the_librarys_own_reading(unpacked):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    _, source, out = unpacked
    theirs = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    expected = {name: value for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
    ours = load_file(out / "model.safetensors")
    assert ours.keys() == expected.keys()
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []


def test_the_checkpoint_loads_and_computes_what_the_librarys_does(unpacked):
    import torch
    from transformers import AutoModelForCausalLM

    kind, source, out = unpacked
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        ours = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        if kind == "gemma3":  # the library assumes 256, whatever the head's width; llama.cpp and we take the width
            for layer in theirs.model.layers:
                layer.self_attn.scaling = 16**-0.5
        # bf16 rounding apart; the library keeps the weights packed
        a, b = ours(ids).logits.double().flatten(), theirs(ids).logits.double().flatten()
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.999


def test_the_tokenizer_reads_text_as_the_librarys_does(unpacked):
    from transformers import AutoTokenizer

    _, source, out = unpacked
    theirs = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    ours = AutoTokenizer.from_pretrained(out)
    for text in ("hello hell", "he\n\nll"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_gemma_gets_a_template_a_sentencepiece_model_and_an_end_of_turn(unpacked):
    from transformers import AutoTokenizer

    kind, _, out = unpacked
    tokenizer = AutoTokenizer.from_pretrained(out)
    text = tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    if kind == "llama":
        assert text == "World: X<end>hello<end>he  \n\nhell [roll: a]<end>"
        assert not (out / "tokenizer.model").exists()
        return
    assert text == (
        "<bos><start_of_turn>user\nWorld: X\n\nhello<end_of_turn>\n"
        "<start_of_turn>model\nhe  \n\nhell [roll: a]<end_of_turn>\n<start_of_turn>model\n"
    )
    assert tokenizer.eos_token == "<end_of_turn>"
    assert files.read_json(out / "generation_config.json")["eos_token_id"] == [1, 5]
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor()
    pieces.LoadFromFile(str(out / "tokenizer.model"))
    assert pieces.encode("hello hell") == tokenizer("hello hell", add_special_tokens=False)["input_ids"]
    named = files.read_json(out / "tokenizer_config.json")["added_tokens_decoder"]
    assert (named["4"]["special"], named["7"]["special"], named["7"]["content"]) == (True, False, "▁▁")
    assert pieces.IsControl(4) and pieces.IsByte(20) and pieces.IsUnknown(3)


def test_a_system_message_in_the_middle_is_refused_by_the_gemma_template(unpacked):
    from transformers import AutoTokenizer

    kind, _, out = unpacked
    if kind == "gemma3":
        with pytest.raises(Exception, match="system message must be the first"):
            AutoTokenizer.from_pretrained(out).apply_chat_template([*TALK, TALK[0]], tokenize=False)


def test_equal_files_give_equal_bytes(unpacked, tmp_path):
    _, source, out = unpacked
    dequantise(source, tmp_path)
    assert files.sha256_files(tmp_path.iterdir(), tmp_path) == files.sha256_files(out.iterdir(), out)


def test_the_fast_reader_agrees_with_the_gguf_package(unpacked):
    from gguf import GGUFReader, dequantize

    _, source, _ = unpacked
    theirs = GGUFReader(source)
    with GgufFile(source) as ours:
        for key, value in ours.metadata.items():
            assert theirs.fields[key].contents() == value
        for (tensor, values), expected in zip(ours.arrays(), theirs.tensors, strict=True):
            assert tensor.name == expected.name
            assert np.array_equal(values, dequantize(expected.data, expected.tensor_type))


def test_a_file_that_is_no_gguf_is_named(tmp_path):
    for content in (b"not a model at all", b"GGUF" + b"\3\0\0\0" + b"\xff" * 40, b"GGUF\3\0\0\0\1"):
        path = tmp_path / "bad.gguf"
        path.write_bytes(content)
        with pytest.raises(PipelineError, match="no readable GGUF"):
            GgufFile(path)


def test_an_architecture_that_cannot_be_unpacked_is_named(tmp_path):
    source = small.gguf(tmp_path / "base.gguf", "llama")
    source.write_bytes(source.read_bytes().replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0mamba", 1))
    with pytest.raises(BaseModelError, match="'mamba'"):
        dequantise(source, tmp_path)


def test_merges_join_the_best_score_first_and_long_halves_before_short():
    tokens, scores = ["a", "b", "ab", "abab", "aba"], [0.0, 0.0, -1.0, -3.0, -2.0]
    assert tokenizer_files._merges(tokens, scores) == [["a", "b"], ["ab", "a"], ["aba", "b"], ["ab", "ab"]]
