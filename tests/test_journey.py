"""What a stage's key covers: an edit that changes what is made must not be answered with what was made before."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
import torch

from pipeline import journey, learning, run
from pipeline.config import Config
from pipeline.data.check import check_paths
from pipeline.data.tools import VOCABULARY
from pipeline.environment import hardware
from pipeline.errors import DataError, MachineError
from pipeline.progress import Reporter
from tests.data.samples import write_corpus

PACKAGE = Path(journey.__file__).parent


@pytest.mark.parametrize("name", ["native/CMakeLists.txt", "runtime/package-lock.json", "runtime/client.js"])
def test_an_edited_flag_or_lock_is_other_code(name, tmp_path, monkeypatch):
    monkeypatch.setattr(journey, "_CODE", tmp_path)
    file = tmp_path / "part" / name
    file.parent.mkdir(parents=True)
    file.write_text("-O2")
    before = journey.code_digest("part")
    file.write_text("-O3")
    assert journey.code_digest("part") != before


def test_every_kind_of_source_file_of_the_package_is_digested():
    kinds = {path.suffix for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert kinds <= set(journey._SOURCES)


def test_the_trainings_key_covers_what_its_data_modules_take_from_the_data_package():
    taken = set()
    for name in ("chat.py", "dataset.py"):
        for node in ast.walk(ast.parse((PACKAGE / "data" / name).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline.data."):
                taken.add(f"data/{node.module.rpartition('.')[2]}.py")
    assert "data/tools.py" in taken
    assert taken - {"data/scenario.py"} <= set(learning._CODE)  # a scenario's code makes the dataset, which is covered


@pytest.fixture
def unreached(tmp_path, monkeypatch):
    """A GPU that nvidia-smi lists and PyTorch does not reach."""
    smi = tmp_path / "bin/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text('#!/bin/sh\ncase "$1" in *memory*) echo "Old GPU, 8192";; *) echo "Old GPU, 470.1";; esac\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("DM_FORGE_DEVICE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_gpu_that_pytorch_does_not_reach_is_told_before_anything_is_made(unreached, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    config = Config(output_dir=tmp_path / "runs")
    with pytest.raises(
        MachineError, match=r"nvidia-smi lists Old GPU, 470\.1, and torch .* was built for CUDA 13\.0"
    ) as caught:
        run.learn(journey.Journey(config, Reporter("plain", quiet=True), 1))
    assert "driver 580" in caught.value.fix and "DM_FORGE_DEVICE=cpu" in caught.value.fix
    assert not config.output_dir.exists()


@pytest.mark.parametrize(("name", "value"), [("DM_FORGE_DEVICE", "cpu"), ("CUDA_VISIBLE_DEVICES", "")])
def test_the_cpu_is_taken_on_purpose_where_a_gpu_is_not_reached(name, value, unreached, monkeypatch):
    assert hardware.cuda()[0].value == "Old GPU"
    monkeypatch.setenv(name, value)
    hardware.require_gpu()
    assert journey.machine_facts().device != "cuda" and name in hardware.cuda()[0].reason


def test_dm_forge_device_keeps_training_from_a_gpu_that_is_reached(monkeypatch):
    from pipeline.training.adapter import pick_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("DM_FORGE_DEVICE", "cpu")
    assert pick_device().type == "cpu"


def test_a_folder_with_tools_of_its_own_is_checked_but_not_trained_on(tmp_path):
    folder = write_corpus(tmp_path / "mine", 10)
    text = VOCABULARY.read_text()
    config = Config.model_validate({"data": {"folder": folder}, "output_dir": tmp_path / "runs"})
    (folder / "tools.yaml").write_text(f"# the same in other bytes\n{text}")
    run.data(journey.Journey(config, Reporter("plain", quiet=True), 1))
    renamed = text.replace("- name: roll", "- name: cast_lots", 1).replace("[roll:", "[cast_lots:")
    (folder / "tools.yaml").write_text(renamed)
    with pytest.raises(DataError, match="another vocabulary than the project's: cast_lots, roll") as caught:
        run.data(journey.Journey(config, Reporter("plain", quiet=True), 1))
    assert "training_data/tools.yaml" in caught.value.fix and caught.value.where == str(folder / "tools.yaml")
    assert any("tool 'roll'" in str(fault) for fault in check_paths([folder]))  # by the folder's own, as it always was
