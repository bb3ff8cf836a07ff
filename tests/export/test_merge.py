import json

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
