"""What the app is told, and which runtime is refused."""

from pathlib import Path

import pytest

from pipeline import gguf_file
from pipeline.bases.catalog import entries
from pipeline.data.tools import load_vocabulary
from pipeline.errors import ExportError, PipelineError, UsageError
from pipeline.integration import cactus, runtimes
from tests import tiny_gguf

MODEL = Path("assets/models/custom-dnd-tiny.gguf")


def test_the_config_has_the_keys_of_the_app():
    settings = cactus.config(MODEL, None)
    assert settings == {
        "modelPath": "./assets/models/custom-dnd-tiny.gguf",
        "mmprojPath": None,
        "maxTokens": 2048,
        "temperature": 0.7,
        "topP": 0.9,
        "toolCallFormat": "bracket",
        "supportedTools": list(load_vocabulary().names),
    }


def test_the_config_is_written_beside_the_model(tmp_path):
    written = cactus.write(tmp_path, cactus.config(MODEL, MODEL.with_name("custom-dnd-tiny-mmproj.gguf")))
    assert written.name == "cactus.config.json"
    assert '"mmprojPath": "./assets/models/custom-dnd-tiny-mmproj.gguf"' in written.read_text()


def test_the_instructions_say_where_it_loads_and_where_not():
    text = cactus.instructions(cactus.config(MODEL, None), "gemma3n")
    assert 'modelPath: "./assets/models/custom-dnd-tiny.gguf"' in text
    assert "mmprojPath: null" in text
    assert "Loads in: llama.rn" in text
    assert "cactus@0.2: " in text


def test_a_target_that_cannot_load_the_file_is_refused_with_those_that_can():
    with pytest.raises(ExportError, match="gemma3n") as refused:
        runtimes.require("cactus@0.2", "gemma3n")
    assert "llama.rn" in str(refused.value)
    with pytest.raises(ExportError, match="reads no GGUF"):
        runtimes.require("cactus@1", "llama")
    with pytest.raises(ExportError, match="2 GB"):
        runtimes.require("wllama", "llama", 3_000_000_000)


@pytest.mark.parametrize("name", ["cactus@0.2", "cactus@0.2.4", "llama.rn", "llama.rn@0.12", "wllama"])
def test_a_target_that_loads_the_file_is_accepted(name):
    runtimes.require(name, "llama", 100_000_000)


def test_an_unknown_runtime_is_bad_usage():
    with pytest.raises(UsageError, match=r"mlc") as refused:
        runtimes.find("mlc")
    assert "cactus@0.2" in str(refused.value)
    with pytest.raises(UsageError):
        runtimes.find("cactus")  # which of them?


def test_the_architecture_is_read_from_the_file_itself(tmp_path):
    assert gguf_file.architecture(tiny_gguf.write(tmp_path / "tiny.gguf")) == "llama"
    (tmp_path / "none.gguf").write_bytes(b"not a model")
    with pytest.raises(PipelineError, match="no readable GGUF"):
        gguf_file.architecture(tmp_path / "none.gguf")


def test_every_runtime_that_the_catalogue_names_is_in_the_table():
    known = {runtime.name for runtime in runtimes.runtimes()}
    for entry in entries().values():
        assert set(entry.runtimes) <= known, entry.name
