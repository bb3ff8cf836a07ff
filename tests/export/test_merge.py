import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.errors import ExportError
from pipeline.export.merge import canonical, merge, tensor_slots
from tests import tiny


@pytest.fixture(params=tiny.ARCHITECTURES)
def pair(request, tmp_path, smollm2):
    base = tiny.checkpoint(tmp_path / "base", request.param, smollm2.path)
    return base, tiny.adapter(tmp_path / "adapter", base)


def test_merged_logits_equal_adapter_logits_within_bf16_rounding(pair, tmp_path):
    base, adapter = pair
    merge(base, adapter, tmp_path / "merged")
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
        expected = tuned(input_ids=ids).logits
        untuned = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(input_ids=ids).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(input_ids=ids).logits
    change = (expected - untuned).abs().mean()
    assert change > 0
    assert (found - expected).abs().mean() < 0.05 * change


def test_every_tensor_keeps_name_order_dtype_shape_and_offset(pair, tmp_path):
    base, adapter = pair
    changed = merge(base, adapter, tmp_path / "merged")
    before, after = tensor_slots(base), tensor_slots(tmp_path / "merged")
    shape = [(slot.name, slot.dtype, slot.shape, slot.start, slot.end) for slot in before]
    assert shape == [(slot.name, slot.dtype, slot.shape, slot.start, slot.end) for slot in after]
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    assert sum(not torch.equal(old[name], new[name]) for name in old) == changed == sum("_proj" in name for name in old)


def test_a_tensor_that_no_library_knows_survives(pair, tmp_path):
    base, adapter = pair
    weights = load_file(base / "model.safetensors")
    extra = torch.full((3, 5), 7.0, dtype=torch.bfloat16)
    save_file(weights | {"model.layers.9.self_attn.k_proj.weight": extra}, base / "model.safetensors", {"format": "pt"})
    merge(base, adapter, tmp_path / "merged")
    assert torch.equal(
        load_file(tmp_path / "merged" / "model.safetensors")["model.layers.9.self_attn.k_proj.weight"], extra
    )


def test_merging_twice_gives_the_same_bytes(pair, tmp_path):
    base, adapter = pair
    for name in ("one", "two"):
        merge(base, adapter, tmp_path / name)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()


def test_an_adapter_of_another_base_is_refused_and_nothing_is_left(pair, tmp_path):
    base, adapter = pair
    weights = load_file(base / "model.safetensors")
    cut = {name: tensor[:32].clone() if name.endswith("q_proj.weight") else tensor for name, tensor in weights.items()}
    save_file(cut, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"q_proj"):
        merge(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_that_cannot_be_merged_exactly_is_refused(pair, tmp_path):
    base, adapter = pair
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ExportError, match="use_dora"):
        merge(base, adapter, tmp_path / "merged")


def test_an_overflow_is_refused(pair, tmp_path):
    base, adapter = pair
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor.float() * 1e30 for name, tensor in weights.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(ExportError, match="leaves the range"):
        merge(base, adapter, tmp_path / "merged")


def test_wrappers_do_not_hide_a_tensor():
    names = (
        "model.language_model.layers.0.q.weight",
        "language_model.model.layers.0.q.weight",
        "base_model.model.model.layers.0.q.weight",
    )
    assert {canonical(name) for name in names} == {"layers.0.q.weight"}
    assert canonical("model.vision_tower.layers.0.q.weight") != "layers.0.q.weight"


def shard(folder):
    """Split model.safetensors in two, with an index, as large checkpoints are published."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: weights[name] for name in chosen}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_stay_shards_and_hold_the_same_numbers(pair, tmp_path):
    base, adapter = pair
    merge(base, adapter, tmp_path / "whole")
    shard(base)
    merge(base, adapter, tmp_path / "sharded")
    assert {path.name for path in (tmp_path / "sharded").iterdir()} == {path.name for path in base.iterdir()}
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    pieces = {}
    for path in (tmp_path / "sharded").glob("*.safetensors"):
        pieces |= load_file(path)
    assert whole.keys() == pieces.keys() and all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_tied_embeddings_stay_tied_and_untouched(pair, tmp_path):
    base, adapter = pair
    merge(base, adapter, tmp_path / "merged")
    names = [slot.name for slot in tensor_slots(tmp_path / "merged")]
    tied = json.loads((base / "config.json").read_text())["tie_word_embeddings"]
    assert any("lm_head" in name for name in names) != tied
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    assert torch.equal(old["model.embed_tokens.weight"], new["model.embed_tokens.weight"])


def test_whole_tensors_of_full_fine_tuning_take_the_bases_place(pair, tmp_path):
    base, _ = pair
    old = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    trained = {name: old[name].float() + 1, "model.norm.weight": old["model.norm.weight"].float() * 2}
    (tmp_path / "full").mkdir()
    save_file(trained, tmp_path / "full" / "adapter_model.safetensors")
    assert merge(base, tmp_path / "full", tmp_path / "merged") == 2
    new = load_file(tmp_path / "merged" / "model.safetensors")
    for key, tensor in old.items():
        expected = trained[key].to(torch.bfloat16) if key in trained else tensor
        assert torch.equal(new[key], expected)


def test_a_base_quantised_to_bytes_takes_no_adapter(pair, tmp_path):
    base, adapter = pair
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()}, base / "model.safetensors")
    with pytest.raises(ExportError, match="cannot take an adapter exactly"):
        merge(base, adapter, tmp_path / "merged")


MEASURE = """
import resource, sys
from pathlib import Path
from pipeline.export.merge import merge
import torch
torch.set_num_threads(1)
torch.ones(256, 8) @ torch.ones(8, 256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge(*map(Path, sys.argv[1:]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_the_peak_is_four_times_the_largest_tensor_whatever_the_models_size(tmp_path):
    """16 tensors of 16 MB: a quarter of a gigabyte is merged in less than a quarter of that."""
    rows, columns, rank = 4096, 2048, 4
    names = [f"model.layers.{layer}.mlp.up_proj" for layer in range(16)]
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    tensor = torch.ones(rows, columns, dtype=torch.bfloat16)
    save_file({f"{name}.weight": tensor.clone() for name in names}, base / "model.safetensors")
    pairs = {f"base_model.model.{name}.lora_A.weight": torch.ones(rank, columns) for name in names}
    pairs |= {f"base_model.model.{name}.lora_B.weight": torch.ones(rows, rank) for name in names}
    save_file(pairs, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    command = [sys.executable, "-c", MEASURE, str(base), str(adapter), str(tmp_path / "merged")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    largest = rows * columns * 2
    assert int(done.stdout) < 4 * largest + 16_000_000
    assert load_file(tmp_path / "merged" / "model.safetensors")[f"{names[-1]}.weight"][0, 0] == 1 + rank
