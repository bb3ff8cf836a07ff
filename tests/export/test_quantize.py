"""Sizes, the importance matrix and the choice of a quantisation, on a tiny model."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bench import sizes
from pipeline.artifacts import Dataset
from pipeline.bases import catalog
from pipeline.config import ParityConfig
from pipeline.data.chat import render
from pipeline.data.dataset import Conversation, to_jsonl
from pipeline.errors import ExportError
from pipeline.export import importance, parity
from pipeline.export.choose import choose, paired_difference
from pipeline.export.convert import convert
from pipeline.export.quantize import KINDS, predict_sizes, quantize
from pipeline.gguf_file import read_head
from tests import tiny
from tests.export.test_parity import MESSAGES


@pytest.fixture(scope="module")
def made(tmp_path_factory, smollm2, llama):
    folder = tmp_path_factory.mktemp("quantise")
    checkpoint = tiny.checkpoint(
        folder / "checkpoint", "llama", smollm2.path, hidden_size=256, intermediate_size=512, head_dim=64
    )
    convert(checkpoint, folder / "f16.gguf", llama, {"general.name": "tiny"})
    return folder


@pytest.fixture(scope="module")
def sequences(made):
    rendered = render(AutoTokenizer.from_pretrained(made / "checkpoint"), MESSAGES)
    positions = [index - 1 for index, wanted in enumerate(rendered.supervised) if wanted]
    return [parity.Sequence("tests/door", MESSAGES, rendered.ids, positions)]


@pytest.fixture(scope="module")
def dataset(made):
    kinds = {"train": "The gate is shut.", "test": "HELDOUT words"}
    conversations = [
        Conversation(
            f"c/{split}",
            "c.md",
            1,
            "c",
            "scenario",
            split,
            1.0,
            ({"role": "user", "content": "Hello."}, {"role": "assistant", "content": words * 30}),
        )
        for split, words in kinds.items()
    ] * 8
    (made / "dataset.jsonl").write_text(to_jsonl(conversations))
    return Dataset(made / "dataset.jsonl", made / "report.json", "digest")


@pytest.mark.parametrize("kind", KINDS)
def test_predicted_sizes_are_the_sizes_of_the_files(made, llama, kind):
    out = made / f"{kind}.gguf"
    quantize(made / "f16.gguf", out, kind, llama, 1, 1e9)
    assert predict_sizes(made / "f16.gguf", llama)[kind] == out.stat().st_size


def test_a_file_that_is_too_large_names_the_kinds_that_fit(made, llama, tmp_path):
    sizes = predict_sizes(made / "f16.gguf", llama)
    with pytest.raises(ExportError) as caught:
        quantize(made / "f16.gguf", tmp_path / "big.gguf", "Q8_0", llama, 1, sizes["Q5_K_M"])
    assert "choose --quant Q5_K_M, or raise --max-size" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_fits_says_so(made, llama, tmp_path, sequences):
    with pytest.raises(ExportError, match=r"the Q4_K_M file has .* more than the") as caught:
        run(made, tmp_path, sequences, llama, max_bytes=1000.0)
    assert "no quantisation of this base fits: choose a smaller --base" in str(caught.value)


def test_the_matrix_comes_from_training_conversations_alone(made, dataset, llama, smollm2):
    words = importance.text(dataset, smollm2.path, 2)
    assert "The gate is shut." in words and "HELDOUT" not in words


def test_the_matrix_changes_the_weights_twice_in_the_same_way_and_leaves_no_path(made, dataset, llama, tmp_path):
    files = []
    for name in ("one", "two"):
        matrix, out = tmp_path / name / "imatrix.gguf", tmp_path / f"{name}.gguf"
        importance.compute(made / "f16.gguf", dataset, made / "checkpoint", matrix, llama, 1, 2)
        quantize(made / "f16.gguf", out, "Q4_K_M", llama, 1, 1e9, matrix)
        files.append(out.read_bytes())
    quantize(made / "f16.gguf", tmp_path / "plain.gguf", "Q4_K_M", llama, 1, 1e9)
    assert files[0] == files[1]
    assert str(tmp_path).encode() not in files[0] and b"/tmp/" not in files[0][:4000]
    fields = read_head(tmp_path / "one.gguf").fields
    assert fields["quantize.imatrix.file"] == "imatrix.gguf" and fields["quantize.imatrix.chunks_count"] == 2
    assert up_rows(tmp_path / "one.gguf") != up_rows(tmp_path / "plain.gguf")


def up_rows(gguf):
    start = next(tensor for tensor in read_head(gguf).tensors if tensor.name == "blk.0.ffn_up.weight").offset
    return gguf.read_bytes()[start : start + 4096]


def test_a_matrix_that_cannot_be_made_says_how_to_do_without(made, dataset, llama, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(ExportError) as caught:
        importance.compute(tmp_path / "broken.gguf", dataset, made / "checkpoint", tmp_path / "i.gguf", llama, 1, 2)
    assert "imatrix_chunks: 0" in str(caught.value)


def run(made, folder, sequences, llama, *, max_bytes=1e9, score=None, **bounds):
    limits = ParityConfig(**({"quant_mean_kl": 1.0, "quant_top1": 0.0} | bounds))
    return choose(
        made / "f16.gguf",
        folder,
        sequences,
        llama,
        limits,
        threads=1,
        max_bytes=max_bytes,
        margin=0.02,
        score=score,
    )


def scores(**by_kind):
    """Right (1) or wrong (0) for 200 turns, by the kind in the file's name."""
    return lambda path: next((turns for kind, turns in by_kind.items() if kind in path.name), by_kind["f16"])


def played(hits, turns=2):
    """Each turn's score with its conversation, of `turns` each."""
    return [(f"game {index // turns}", hit) for index, hit in enumerate(hits)]


GOOD, WORSE = played([1.0, 0.0] * 100), played([0.0] * 30 + [1.0, 0.0] * 85)
ALIKE = played([0.0, 1.0] + [1.0, 0.0] * 99)


def test_the_smallest_that_is_not_worse_is_taken(made, tmp_path, sequences, llama):
    found = run(made, tmp_path, sequences, llama, score=scores(f16=GOOD, Q4_K_M=WORSE, Q5_K_M=ALIKE))
    assert found.kind == "Q5_K_M" and found.path.is_file()
    verdicts = {candidate.kind: candidate.verdict for candidate in found.candidates}
    assert verdicts["Q4_K_M"].startswith("plays significantly worse: -0.0")
    assert verdicts["Q5_K_M"].startswith("taken: not worse, +0.000")
    assert verdicts["Q6_K"] == verdicts["Q8_0"] == "not tried: a smaller one is not worse"
    assert [path.name for path in tmp_path.iterdir()] == ["model-Q5_K_M.gguf"]
    assert json.loads(json.dumps(found.report()))["chosen"] == "Q5_K_M"


def test_without_scores_the_numbers_decide(made, tmp_path, sequences, llama):
    assert run(made, tmp_path, sequences, llama).kind == "Q4_K_M"
    nearest = run(made, tmp_path, sequences, llama, quant_mean_kl=0.005)
    kl = {candidate.kind: candidate.mean_kl for candidate in nearest.candidates if candidate.mean_kl is not None}
    assert nearest.kind != "Q4_K_M" and kl["Q4_K_M"] > 0.005 >= kl[nearest.kind]


def test_every_candidate_worse_is_an_error_that_names_them(made, tmp_path, sequences, llama):
    with pytest.raises(ExportError, match=r"Q4_K_M plays significantly worse.*Q5_K_M plays significantly worse"):
        sizes = predict_sizes(made / "f16.gguf", llama)
        run(made, tmp_path, sequences, llama, max_bytes=sizes["Q5_K_M"], score=scores(f16=GOOD, Q4=WORSE, Q5=WORSE))
    assert list(tmp_path.iterdir()) == []


def test_the_bootstrap_pairs_turns():
    assert asdict(paired_difference(GOOD, GOOD)) == {"mean": 0.0, "low": 0.0, "high": 0.0}
    worse = paired_difference(GOOD, WORSE)
    assert worse.low < worse.mean < worse.high < 0
    assert paired_difference(GOOD, WORSE) == worse
    with pytest.raises(ExportError, match="cannot be paired: 200 scores"):
        paired_difference(GOOD, GOOD[:-1])


def test_turns_of_one_game_hang_together_when_files_are_compared():
    f16, spoilt = [1.0] * 200, [0.0] * 20 + [1.0] * 180  # one game of ten, or twenty of two hundred
    together = paired_difference(played(f16, 20), played(spoilt, 20))
    apart = paired_difference(played(f16, 1), played(spoilt, 1))
    assert together.mean == apart.mean == -0.1
    assert apart.high < 0 <= together.high


def test_the_table_in_the_docs_is_what_the_script_prints(llama):
    assert sizes.table(llama) in (Path(__file__).parents[2] / "docs" / "bases.md").read_text(encoding="utf-8")


@pytest.mark.dear
def test_the_size_table_is_exact_for_the_embedded_base(smollm2, llama, tmp_path):
    convert(smollm2.path, tmp_path / "f16.gguf", llama, {"general.name": "SmolLM2"})
    quantize(tmp_path / "f16.gguf", tmp_path / "Q4_K_M.gguf", "Q4_K_M", llama, 1, 1e9)
    table = sizes.sizes_of("llama", catalog.entries()["smollm2-135m"].shape, llama)
    assert abs(table["Q4_K_M"] - (tmp_path / "Q4_K_M.gguf").stat().st_size) < 2000
    assert abs(table["f16"] - (tmp_path / "f16.gguf").stat().st_size) < 2000
