"""Verbs for a finished model: judge it on any scenarios, play, list, go back."""

from pathlib import Path

import pytest

from pipeline import aftercare, files, shipping
from pipeline.artifacts import BaseModel, Run
from pipeline.config import Config
from pipeline.errors import DataError, ExportError, GateRefused, UsageError
from pipeline.integration import play, store
from pipeline.progress import Reporter
from tests import tiny_gguf

GAME = """# SYSTEM
Role: Dungeon Master
World: Faerûn
Location: Tavern
Party:
- Elara (Elf Wizard, Level 5, HP: 28/28)

# CONVERSATION
## User
I look around.

## DM
It is dark.

[roll: perception]

## TOOLCALL
perception: 12 + 5(skill) = *17*

## DM
A cat.
"""


@pytest.fixture
def config(tmp_path):
    return Config(
        models_dir=tmp_path / "models", validation={"slots": 1, "max_reply_tokens": 8, "perplexity_conversations": 1}
    )


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("silent") / "silent.gguf", always="<|im_end|>")


def test_eval_reads_scenarios_wherever_they_lie(tmp_path, config, silent, llama):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "game.md").write_text(GAME)
    result = aftercare.evaluate(silent, [tmp_path / "mine"], config, Reporter("plain", quiet=True), 1)
    assert result["tool_call_accuracy"]["value"] == 0.5
    assert result["conversations"] == 1


def test_eval_without_scenarios_takes_those_that_training_never_sees():
    held_out = aftercare.conversations_of([Path("training_data")], held_out_only=True)
    everything = aftercare.conversations_of([Path("training_data")])
    assert 10 < len(held_out) < len(everything) / 4


def test_eval_says_what_it_cannot_read(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.md"):
        aftercare.conversations_of([tmp_path / "nowhere.md"])
    (tmp_path / "broken.md").write_text("no heading at all\n")
    with pytest.raises(DataError, match="SYSTEM"):
        aftercare.conversations_of([tmp_path / "broken.md"])


def test_a_game_answers_each_line_and_carries_calls_out(silent, llama, tmp_path):
    said = []
    play.play(silent, llama, 1, iter(["I wait.", "  ", "I wait again."]), said.append)
    assert said == ["", ""]  # this model ends each reply at once


def run_with(tmp_path, content):
    run = Run(tmp_path / "runs" / f"run-{content}")
    files.write_text(run.export / "model-Q8_0.gguf", content)
    files.write_text(run.training / "adapter" / "adapter_model.safetensors", "x")
    digest = files.sha256_bytes(content.encode())
    stages = {
        "data": ({"data/dataset.jsonl": "d" * 64}, {}),
        "training": ({"training/adapter/adapter_model.safetensors": "a" * 64}, {"steps": 3, "final_loss": 1.0}),
        "export": ({"export/model-Q8_0.gguf": digest}, EXPORTED | {"sha256": digest}),
        "validation": ({}, {"promoted_sha256": "before"}),
    }
    named = {stage: {"outputs": outputs, "facts": facts} for stage, (outputs, facts) in stages.items()}
    run.write_manifest({"run_id": run.run_id, "stages": named})
    return run


EXPORTED = {"bytes": 3, "quantization": "Q8_0", "imatrix_chunks": 0, "mmproj": None, "mmproj_reason": "text only"}
BASE = BaseModel("tiny", Path("tiny"), "digest", "llama", "Apache-2.0")
FACTS = {
    "config": Config().model_dump(mode="json"),
    "inputs": {"data": "i" * 64},
    "code": "c" * 64,
    "llama_cpp": {"commit": "0" * 40, "build_flags": ["-DGGML_NATIVE=ON"]},
    "versions": {"torch": "2"},
    "host": {"machine": "x86_64"},
}
RESULT = {
    name: {"value": 0.5, "low": 0.4, "high": 0.6, "turns": 10}
    for name in ("tool_call_accuracy", "tool_choice_accuracy", "call_turn_accuracy", "no_call_accuracy", "stop_rate")
}


def result(**changes):
    return RESULT | {"baseline": RESULT} | changes


def test_shipping_gives_the_app_all_it_needs_and_remembers_the_one_before(tmp_path, config):
    for content in ("one", "two"):
        shipping.ship(run_with(tmp_path, content), BASE, result(), config.models_dir, FACTS)
    names = {path.name for path in config.models_dir.iterdir()}
    wanted = {"custom-dnd-tiny.gguf", "model-metadata.json", "cactus.config.json", "dm-tools.js", "dm-tools.d.ts"}
    assert names >= wanted
    assert [line.split()[0] for line in aftercare.shelf(config)] == ["shipped", "kept"]
    assert "run-one" in aftercare.rollback(config, None)
    assert (config.models_dir / "custom-dnd-tiny.gguf").read_text() == "one"


def test_an_empty_shelf_is_said_so(config):
    assert aftercare.shelf(config) == ["no model has been promoted yet"]


def test_a_run_is_measured_against_the_shipped_model_but_never_against_itself(tmp_path, config):
    one, two = run_with(tmp_path, "one"), run_with(tmp_path, "two")
    assert shipping.rival(config.models_dir, one) == (None, "")
    shipping.ship(one, BASE, result(), config.models_dir, FACTS)
    path, digest = shipping.rival(config.models_dir, two)
    assert path == config.models_dir / "custom-dnd-tiny.gguf"
    assert digest == files.sha256_bytes(b"one")
    assert shipping.rival(config.models_dir, one) == (None, "before")  # so that its validation is not done again


def test_a_refused_model_leaves_the_shelf_alone(tmp_path, config):
    with pytest.raises(GateRefused):
        shipping.require_gate(run_with(tmp_path, "one"), config, BASE, result())
    assert store.current(config.models_dir) is None


def test_a_runtime_that_cannot_load_the_base_is_refused_before_training(tmp_path):
    model = tiny_gguf.write(tmp_path / "tiny.gguf")
    shipping.require_runtime("cactus@0.2", model)
    shipping.require_runtime(None, model)
    with pytest.raises(ExportError, match="reads no GGUF"):
        shipping.require_runtime("cactus@1", model)


def test_a_limit_that_is_left_out_is_the_bases_own_and_one_that_is_given_holds(config):
    assert shipping.largest_file(config, "smollm2-135m") == 2e9
    assert shipping.largest_file(config, "gemma-3n-e2b-it") == 4e9
    assert shipping.settled(config, "gemma-3n-e2b-it").gate.max_memory_gb == 4.5
    asked = config.model_copy(update={"export": config.export.model_copy(update={"max_size_gb": 1.0})})
    assert shipping.largest_file(asked, "gemma-3n-e2b-it") == 1e9
