"""The catalogue as it is shipped, the memory it promises, and the base a machine gets by default."""

import pytest

from pipeline.bases import catalog, memory
from pipeline.bases.catalog import Facts, Reach, choose_default, entries, find
from pipeline.errors import BaseModelError

NAMED = {
    "smollm2-135m", "gemma-3-270m", "gemma-3-270m-it", "gemma-3-1b-it", "gemma-3-4b-it", "gemma-3n-e2b-it",
    "gemma-3n-e4b-it", "qwen3-0.6b", "qwen3-1.7b", "smollm2-360m", "smollm2-1.7b",
}  # fmt: skip
OPEN_HUB = Reach(answers=True, accepted=True, reason="the hub hands it out")


def test_every_base_the_project_promises_is_there_with_a_commit():
    assert set(entries()) == NAMED
    assert all(entry.revision for entry in entries().values())


@pytest.mark.parametrize("entry", entries().values(), ids=lambda entry: entry.name)
def test_parameters_follow_from_the_shape(entry):
    counted = sum(matrix.size for matrix in memory.matrices(entry.shape)) + entry.tower_parameters
    assert counted == pytest.approx(entry.parameters, rel=4e-4)
    assert entry.multimodal == (entry.tower_parameters > 0)


@pytest.mark.parametrize("entry", entries().values(), ids=lambda entry: entry.name)
def test_needs_are_in_order(entry):
    train, run = entry.to_train(), list(entry.to_run().values())
    assert train["qlora"] < train["lora"] < train["full"]
    assert run == sorted(run, reverse=True)


def test_gemma_wants_its_licence_accepted_and_gemma_3n_does_not_run_in_cactus():
    assert all((e.licence_terms.must_accept == "gemma") == e.name.startswith("gemma") for e in entries().values())
    assert not any("cactus" in runtime for runtime in find("gemma-3n-e2b-it").runtimes)
    assert "cactus@0.2" in find("smollm2-135m").runtimes


@pytest.mark.parametrize(("base", "measured"), [("smollm2-135m", 105_454_048), ("gemma-3-270m", 253_113_024)])
def test_the_size_formula_meets_real_q4_k_m_files_within_three_percent(base, measured):
    assert find(base).gguf_bytes()["Q4_K_M"] == pytest.approx(measured, rel=0.03)


def test_lora_parameters_are_those_that_peft_makes():
    # r=32 on the seven linear layers of SmolLM2-135M, as PEFT counts them
    assert memory.lora_parameters(find("smollm2-135m").shape, 32) == 9_768_960


@pytest.mark.parametrize("name", ["gemma-3-1b-it", "google/gemma-3-1b-it", "google/Gemma-3-1B-it"])
def test_a_base_is_found_by_name_and_by_hub_id(name):
    assert find(name.lower() if "/" in name else name).name == "gemma-3-1b-it"


def test_a_wrong_name_gets_the_nearest_and_the_seeds_name_its_story():
    with pytest.raises(BaseModelError, match="no base model") as caught:
        find("smolm2-135m")
    assert "did you mean 'smollm2-135m'" in caught.value.fix
    with pytest.raises(BaseModelError, match="never been") as caught:
        find("gemma-3-2b-it")
    assert "gemma-3-4b-it" in caught.value.fix


def gpu(gigabytes, reach=OPEN_HUB, device="cuda"):
    return Facts(device=device, device_name="a GPU", memory=int(gigabytes * 1e9), reach=reach)


def test_the_missions_model_is_taken_where_memory_and_hub_allow_it():
    name, reason = choose_default(gpu(24))
    assert name == "gemma-3n-e2b-it"
    assert "24.0 GB" in reason and "the hub hands it out" in reason
    assert choose_default(gpu(32, device="metal"))[0] == "gemma-3n-e2b-it"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (gpu(8), "offers 8.0 GB"),
        (gpu(16, device="metal"), "offers 12.0 GB"),
        (gpu(24, Reach(True, False, "it is gated")), "it is gated"),
        (gpu(24, Reach(False, False, "the hub does not answer")), "does not answer"),
        (gpu(24, catalog.UNKNOWN_REACH), "was not asked"),
        (Facts("cpu", "two cores", 10**12), "two cores"),
    ],
)
def test_else_the_embedded_base_is_taken_and_the_reason_names_the_fact(facts, said):
    name, reason = choose_default(facts)
    assert name == "smollm2-135m"
    assert said in reason


def test_the_hub_is_not_worth_asking_on_a_cpu_or_a_small_gpu():
    assert not catalog.memory_allows(Facts("cpu", "two cores", 10**12))
    assert not catalog.memory_allows(gpu(8))
    assert catalog.memory_allows(gpu(24))


def test_a_base_whose_file_would_be_too_large_is_refused_before_it_is_fetched_and_told_what_would_do():
    with pytest.raises(BaseModelError) as refused:
        catalog.require_fits("google/gemma-3-4b-it", "Q4_K_M", 2e9)
    assert "2.5 GB" in refused.value.what
    assert "--max-size 2.6GB" in refused.value.fix
    assert "gemma-3-1b-it" in refused.value.fix
    catalog.require_fits("gemma-3-4b-it", "Q4_K_M", 2.6e9)
    catalog.require_fits("somebody/unknown", "Q8_0", 1.0)


def test_what_auto_chooses_on_a_gpu_fits_the_limits_that_it_is_given():
    own = catalog.limits(catalog.MISSION)
    entry = catalog.find(catalog.MISSION)
    catalog.require_fits(catalog.MISSION, "auto", own.file_gb * 1e9)
    assert entry.to_run()["Q4_K_M"] < own.memory_gb * 1e9
    assert (catalog.limits("smollm2-135m"), catalog.limits("/a/folder")) == (catalog.Limits(), catalog.Limits())
