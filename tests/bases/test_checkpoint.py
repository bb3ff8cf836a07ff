"""A local folder goes through, or is refused for what is wrong with it: every check has its planted fault."""

import json

import pytest

from pipeline.bases import catalog, checkpoint, fetch, safetensors_file
from pipeline.errors import BaseModelError
from pipeline.integration.runtimes import runtimes
from tests.bases import small


def refusal(folder, tmp_path, stage) -> BaseModelError:
    with pytest.raises(BaseModelError) as caught:
        fetch.ensure(str(folder), tmp_path / "cache", stage)
    return caught.value


def change(folder, name, **fields):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | fields))


def test_a_whole_folder_goes_through_and_its_digest_follows_its_bytes(folder, tmp_path, quiet):
    base = fetch.ensure(str(folder), tmp_path / "cache", quiet)
    assert (base.path, base.architecture, base.multimodal) == (folder, "llama", False)
    assert "llama.rn" in base.runtimes
    (folder / "README.md").write_text("not a part of the model")
    assert fetch.ensure(str(folder), tmp_path / "cache", quiet).digest == base.digest
    (folder / "generation_config.json").write_text("{}")
    assert fetch.ensure(str(folder), tmp_path / "cache", quiet).digest != base.digest


@pytest.mark.parametrize(
    ("architecture", "model_type", "runtime"),
    [
        ("MistralForCausalLM", "mistral", "cactus@0.2"),
        ("Qwen2ForCausalLM", "qwen2", "cactus@0.2"),
        ("Gemma3ForCausalLM", "gemma3_text", "cactus@0.2"),
    ],
)
def test_a_local_base_has_the_runtimes_of_the_family_it_becomes(
    folder, tmp_path, quiet, architecture, model_type, runtime
):
    change(folder, "config.json", architectures=[architecture], model_type=model_type)
    assert runtime in fetch.ensure(str(folder), tmp_path / "cache", quiet).runtimes


@pytest.mark.parametrize("family", sorted({*checkpoint.PROVEN.values(), *checkpoint.LIKELY.values()}))
def test_the_catalogue_and_the_table_of_runtimes_agree(family):
    assert catalog.runtimes(family) == tuple(row.name for row in runtimes() if family in row.architectures)


def test_an_empty_or_missing_folder_is_said(tmp_path, quiet):
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty", tmp_path, quiet).what
    assert "there is no folder" in refusal(tmp_path / "nowhere", tmp_path, quiet).what


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "auto_map: AutoModel"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}, "auto_map"),
        ("config.json", {"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "quantised already (gptq)"),
        ("config.json", {"vocab_size": 5}, "no row for"),
        ("config.json", {"vocab_size": 9}, "8 rows, config.json says vocab_size 9"),
        ("config.json", {"architectures": ["Gemma3nForCausalLM"]}, "no tokenizer.model"),
    ],
)
def test_what_a_config_asks_for_can_rule_a_base_out(folder, tmp_path, quiet, name, fields, said):
    change(folder, name, **fields)
    assert said in refusal(folder, tmp_path, quiet).what


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer.json"),
        ("chat_template.jinja", "no chat template"),
        ("model.safetensors", "no model*.safetensors"),
    ],
)
def test_a_missing_file_is_named(folder, tmp_path, quiet, name, said):
    (folder / name).unlink()
    error = refusal(folder, tmp_path, quiet)
    assert said in error.what
    assert error.fix


def test_pickles_and_gguf_files_alone_are_refused_but_may_lie_beside_safetensors(folder, tmp_path, quiet):
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    fetch.ensure(str(folder), tmp_path / "cache", quiet)
    (folder / "model.safetensors").unlink()
    assert "pickled weights (pytorch_model.bin)" in refusal(folder, tmp_path, quiet).what
    (folder / "m.gguf").write_bytes(b"")
    assert "GGUF" in refusal(folder, tmp_path, quiet).what


def test_a_special_token_past_the_end_is_let_through_unless_the_template_uses_it(folder, tmp_path, quiet):
    picture = {"id": 8, "content": "<picture>", "special": True}
    change(folder, "tokenizer.json", added_tokens=[*small.TOKENIZER["added_tokens"], picture])
    fetch.ensure(str(folder), tmp_path / "cache", quiet)
    (folder / "chat_template.jinja").write_text(small.TEMPLATE + "<picture>")
    assert "'<picture>' is 8" in refusal(folder, tmp_path, quiet).what


def test_broken_json_is_named(folder, tmp_path, quiet):
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer.json is not readable JSON" in refusal(folder, tmp_path, quiet).what


@pytest.mark.parametrize("cut", [1, 100, 80_000])
def test_truncated_weights_are_noticed(folder, tmp_path, quiet, cut):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    assert "truncated" in refusal(folder, tmp_path, quiet).what


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no safetensors header"),
        (b"\xff" * 8 + b"{}", "no safetensors header"),
        (b"\x02" + bytes(7) + b"[]", "header is damaged"),
        (b"\x05" + bytes(7) + b"{bad}", "header is damaged"),
        (small.weights() + b"!", "too long"),
        (small.weights().replace(b'"F32"', b'"F16"'), "header is damaged"),
        (small.weights().replace(b"[0, 128]", b"[8, 136]", 1), "starts at byte 8"),
    ],
)
def test_damaged_headers_are_noticed(tmp_path, content, said):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(BaseModelError, match=said):
        safetensors_file.examine(tmp_path)


def test_shards_must_agree_with_their_index(tmp_path):
    folder = small.write(tmp_path / "sharded", small.sharded())
    assert len(safetensors_file.examine(folder)) == 2
    index = folder / safetensors_file.INDEX
    text = index.read_text()
    index.write_text(text.replace("up_proj", "down_proj"))
    with pytest.raises(BaseModelError, match="the index puts it into"):
        safetensors_file.examine(folder)
    index.write_text(text)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"00002-of-00002.*the file is missing"):
        safetensors_file.examine(folder)
    index.write_text(text.replace("model-00002", "../model-00002"))
    with pytest.raises(BaseModelError, match="outside the folder"):
        safetensors_file.examine(folder)


def test_the_same_tensor_in_two_files_is_refused(tmp_path):
    contents = small.sharded()
    del contents[safetensors_file.INDEX]
    contents["model-00002-of-00002.safetensors"] = contents["model-00001-of-00002.safetensors"]
    with pytest.raises(BaseModelError, match=r"is in model-00001-of-00002.* too"):
        safetensors_file.examine(small.write(tmp_path / "twice", contents))


@pytest.mark.dear
def test_every_architecture_let_through_is_known_to_the_pinned_converter(llama):
    known = "".join(path.read_text() for path in (llama.source / "conversion").glob("*.py"))
    assert [name for name in checkpoint.PROVEN | checkpoint.LIKELY if f'"{name}"' not in known] == []
