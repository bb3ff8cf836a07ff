"""Going on from an earlier run's adapter: found, checked, refused."""

from __future__ import annotations

import pytest

from pipeline import files, lineage
from pipeline.artifacts import BaseModel
from pipeline.config import Config, LoraConfig, TrainingConfig
from pipeline.errors import UsageError

BASE = BaseModel("tiny", None, "base-digest", "llama", "none")


@pytest.fixture
def config(tmp_path):
    """Settings with one promoted run, `default-1`."""
    config = Config(output_dir=tmp_path / "runs", models_dir=tmp_path / "models")
    folder = config.output_dir / "default-1"
    (folder / "training/adapter").mkdir(parents=True)
    (folder / "training/adapter/adapter_model.safetensors").write_bytes(b"weights")
    facts = {"adapter_sha256": files.sha256_bytes(b"weights")}
    manifest = {"run_id": "default-1", "stages": {"training": {"facts": facts}}}
    manifest |= {
        "inputs": {"base": {"name": "tiny", "digest": "base-digest"}},
        "config": config.model_dump(mode="json"),
    }
    files.write_json(folder / "manifest.json", manifest)
    files.write_json(config.models_dir / "model-metadata.json", {"run_id": "default-1"})
    return config


def test_latest_is_the_promoted_run(config):
    parent = lineage.find(config, "latest")
    assert parent == lineage.find(config, "default-1") and parent.run_id == "default-1"
    assert (parent.adapter(config) / "adapter_model.safetensors").read_bytes() == b"weights"
    lineage.require_fit(config, parent, BASE)
    assert lineage.parent_of(config, "default-1") is None


def test_without_a_promoted_run_there_is_no_latest(tmp_path):
    config = Config(output_dir=tmp_path, models_dir=tmp_path)
    with pytest.raises(UsageError, match="no model has been promoted"):
        lineage.find(config, "latest")
    with pytest.raises(UsageError, match="no trained adapter"):
        lineage.find(config, "default-9")


def test_another_base_and_another_lora_are_refused_together(config):
    parent = lineage.find(config, "latest")
    other = config.model_copy(update={"training": TrainingConfig(lora=LoraConfig(rank=16))})
    with pytest.raises(UsageError, match=r"base tiny, this run trains big; its LoRA has rank 32, this run wants 16"):
        lineage.require_fit(other, parent, BaseModel("big", None, "other", "llama", "none"))


def test_another_depth_is_refused_before_the_dear_work(config):
    parent = lineage.find(config, "latest")
    half = config.model_copy(update={"training": TrainingConfig(lora=LoraConfig(depth=0.5))})
    with pytest.raises(UsageError, match=r"its LoRA has depth 1.0, this run wants 0.5"):
        lineage.require_fit(half, parent, BASE)


def test_a_changed_adapter_is_refused(config):
    parent = lineage.find(config, "latest")
    (parent.adapter(config) / "adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(UsageError, match="has changed"):
        lineage.require_fit(config, parent, BASE)


def test_full_fine_tuning_has_nothing_to_go_on_from(config):
    full = config.model_copy(update={"training": TrainingConfig(method="full")})
    with pytest.raises(UsageError, match="full fine-tuning"):
        lineage.require_fit(full, lineage.find(config, "latest"), BASE)
