"""What the journey exports: importance matrix, a chosen quantisation, a projector, and fully fine-tuned weights."""

import json

import pytest

from pipeline.gguf_file import read_head
from tests import gemma3n, tiny
from tests.conftest import CACHE
from tests.test_run import Place

pytestmark = pytest.mark.dear  # each test or two is a run of its own


def place_for(folder, base, corpus, **export):
    """With a cache of its own for baselines, so that the preflight is always made."""
    place = Place(folder, base, corpus)
    (folder / "cache").mkdir()
    (folder / "cache" / "llama.cpp").symlink_to(CACHE / "llama.cpp")
    place.settings["cache_dir"] = str(folder / "cache")
    place.settings["export"] |= export
    place.model = folder / "models" / f"custom-dnd-{base.name}.gguf"
    return place


def facts(place, stage="export"):
    return place.manifest["stages"][stage]["facts"]


def shelf(place):
    return json.loads((place.folder / "models" / "model-metadata.json").read_text())


@pytest.fixture(scope="module")
def blocks(tmp_path_factory, smollm2, llama):
    """A tiny Llama whose rows are whole blocks of the k-quants."""
    folder = tmp_path_factory.mktemp("base") / "tiny-blocks"
    return tiny.checkpoint(folder, "llama", smollm2.path, hidden_size=256, intermediate_size=256, head_dim=64)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory, blocks, corpus):
    """`auto` with a bound that the smallest kind cannot hold here, so that there is something to choose."""
    bounds = {"conversations": 1, "quant_mean_kl": 0.08, "quant_top1": 0.5}
    auto = {"conversations": 1, "margin": 1.0}
    place = place_for(
        tmp_path_factory.mktemp("auto"), blocks, corpus, quantization="auto", imatrix_chunks=2, parity=bounds, auto=auto
    )
    code, out, err = place.run()
    assert code == 0, err
    place.first = place.model.read_bytes()
    return place, out, err


def test_auto_ships_the_smallest_file_that_is_not_worse_and_says_so_everywhere(chosen):
    place, _, err = chosen
    choice = facts(place)["choice"]
    kind = facts(place)["quantization"]
    verdicts = {one["kind"]: one for one in choice["candidates"]}
    assert choice["chosen"] == kind != "Q4_K_M"
    assert verdicts["Q4_K_M"]["verdict"] == "strays too far from the f16 file's numbers"
    assert verdicts["Q4_K_M"]["mean_kl"] > 0.08 >= verdicts[kind]["mean_kl"]
    assert verdicts[kind]["difference"]["low"] <= verdicts[kind]["difference"]["mean"]
    assert verdicts[kind]["tokens_per_second"] > 0
    assert f"{kind} chosen: Q4_K_M (" in err and f"({kind}, " in err
    assert shelf(place)["quantization_level"] == kind and shelf(place)["file_size_mb"] == round(
        len(place.first) / 1e6, 1
    )
    report = next((place.folder / "runs").glob("*/validation/report.html")).read_text()
    assert "importance matrix of 2 × 512 training tokens; chosen: Q4_K_M (" in report
    assert not list((place.folder / "runs").glob("*/export/model-Q4_K_M.gguf"))


def test_the_baseline_is_quantised_like_the_model_it_is_compared_with(chosen):
    place, _, err = chosen
    kind = facts(place)["quantization"]
    made = {path.name.split("-")[2]: path for path in (place.folder / "cache" / "baselines").iterdir()}
    assert err.count("✓ preflight") == 2 and set(made) == {"Q4_K_M", kind}
    assert read_head(made[kind]).fields["quantize.imatrix.chunks_count"] == 2


def test_the_matrix_is_in_the_file_the_manifest_and_the_metadata(chosen):
    place, _, _ = chosen
    assert read_head(place.model).fields["quantize.imatrix.chunks_count"] == 2
    assert place.manifest["stages"]["export"]["outputs"]["export/imatrix.gguf"]
    assert facts(place)["imatrix_chunks"] == shelf(place)["imatrix_chunks"] == 2


def test_a_chosen_file_is_not_chosen_again(chosen):
    place, out, _ = chosen
    before = place.manifest
    code, again, err = place.run()
    assert (code, again) == (0, out)
    assert "· export: skipped, nothing it depends on has changed" in err
    assert place.manifest == before


def test_another_matrix_makes_the_export_anew_and_keeps_the_training(chosen):
    place, _, _ = chosen
    code, _, err = place.run(
        "--quant", "Q4_K_M", "--set", "export.imatrix_chunks=4", "--set", "export.parity.quant_mean_kl=1"
    )
    assert code == 0, err
    assert "· data: skipped" in err and "· training: skipped, taken over from an earlier run" in err
    assert "✓ export" in err
    assert read_head(place.model).fields["quantize.imatrix.chunks_count"] == 4


def test_auto_keeps_to_the_largest_size(chosen):
    place, _, _ = chosen
    code, _, err = place.run("--max-size", "1MB")
    assert code == 1
    assert "more than the 1.0 MB allowed" in err and "choose a smaller --base" in err


def test_q8_0_does_without_a_matrix(tmp_path, blocks, corpus):
    place = place_for(tmp_path, blocks, corpus)
    code, _, err = place.run()
    assert code == 0, err
    assert facts(place)["imatrix_chunks"] == 0 and facts(place)["mmproj"] is None
    assert set(place.manifest["stages"]["export"]["outputs"]) == {"export/model-f16.gguf", "export/model-Q8_0.gguf"}
    assert f"mmproj     none: {blocks.name} reads text only" in err


def test_a_fully_fine_tuned_model_takes_the_same_road(tmp_path, blocks, corpus):
    place = place_for(tmp_path, blocks, corpus)
    place.settings["training"] |= {"method": "full", "learning_rate": 1e-3}
    bounds = {
        "f16_mean_kl": 1e-4,
        "f16_top1": 0.95,
    }  # among some 80 positions of a tiny model are two that are nearly even
    place.settings["export"]["parity"] = place.settings["export"].get("parity", {}) | bounds
    code, _, err = place.run()
    assert code == 0, err
    layers = 2 * (4 + 3 + 2) + 1  # attention, MLP and norms of each layer, and the last norm
    assert facts(place)["tensors_merged"] == layers
    assert facts(place, "parity")["f16_mean_kl"] < 1e-4
    assert "training/adapter/adapter_config.json" not in place.manifest["stages"]["training"]["outputs"]
    before = place.model.read_bytes()
    code, _, err = place.run()
    assert code == 0 and "· training: skipped" in err and place.model.read_bytes() == before


@pytest.fixture(scope="module")
def seeing(tmp_path_factory, corpus, llama):
    folder = tmp_path_factory.mktemp("seeing")
    gemma3n.tokenizer(folder / "tokenizer")
    base = tiny.gemma3_vision(folder / "tiny-seeing", folder / "tokenizer")
    place = place_for(folder, base, corpus)
    code, out, err = place.run()
    assert code == 0, err
    return place, out, err


def test_a_base_that_reads_images_ships_its_projector(seeing):
    place, out, err = seeing
    projector = place.model.with_name("custom-dnd-tiny-seeing-mmproj.gguf")
    assert out.splitlines()[-2:] == [f'modelPath: "{place.model.as_posix()}"', f'mmprojPath: "{projector.as_posix()}"']
    assert read_head(projector).fields["general.architecture"] == "clip"
    outputs = place.manifest["stages"]["export"]["outputs"]
    assert shelf(place)["mmproj"] == {"sha256": outputs["export/mmproj-f16.gguf"]}
    assert place.manifest["promoted"][str(projector)] == outputs["export/mmproj-f16.gguf"]
    assert json.loads((projector.parent / "cactus.config.json").read_text())["mmprojPath"].endswith("-mmproj.gguf")
    assert "two test pictures read, 18 tokens each" in err
    report = next((place.folder / "runs").glob("*/validation/report.html")).read_text()
    assert (
        f"mmprojPath: &quot;{projector.as_posix()}&quot;" in report or f'mmprojPath: "{projector.as_posix()}"' in report
    )


def test_a_multimodal_run_is_skipped_and_puts_a_lost_projector_back(seeing):
    place, out, _ = seeing
    projector = place.model.with_name("custom-dnd-tiny-seeing-mmproj.gguf")
    before = projector.read_bytes()
    projector.unlink()
    code, again, err = place.run()
    assert (code, again) == (0, out) and "· export: skipped" in err
    assert projector.read_bytes() == before
    next((place.folder / "runs").glob("*/export/mmproj-f16.gguf")).unlink()
    code, _, err = place.run()
    assert code == 0 and "· training: skipped" in err and "✓ export" in err
    assert projector.read_bytes() == before
