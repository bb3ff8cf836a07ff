"""The journey itself, on a tiny real model: what is skipped, what continues, what is refused, and what it says."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline import run
from pipeline.config import Config
from pipeline.journey import Journey
from pipeline.progress import Reporter
from tests import tiny
from tests.data.samples import write_corpus

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "threads": 1,
    "training": {
        "max_tokens": 4000,
        "batch_tokens": 600,
        "warmup_steps": 1,
        "checkpoint_interval": 1,
        "evaluations": 1,
        "evaluation_tokens": 500,
        "lora": {"rank": 4, "alpha": 8},
    },
    "export": {"quantization": "Q8_0", "parity": {"conversations": 1, "quant_top1": 0.5}},
    "validation": {
        "conversations": 2,
        "baseline_conversations": 1,
        "max_reply_tokens": 8,
        "slots": 2,
        "phone": False,
        "free_games": 0,
    },
    "gate": {"enabled": False},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, smollm2, llama):
    """A tiny Llama with the embedded base's tokenizer; llama.cpp is built by asking for it."""
    return tiny.checkpoint(tmp_path_factory.mktemp("base") / "tiny-llama", "llama", smollm2.path)


class Place:
    """A folder of its own for runs and models, and the command that fills it."""

    def __init__(self, folder: Path, base: Path, corpus: Path) -> None:
        self.folder = folder
        self.first = b""
        self.config = folder / "tiny.yaml"
        self.settings = json.loads(json.dumps(SETTINGS)) | {
            "base": str(base),
            "data": {"folder": str(corpus), "drill_lines": 48},
            "output_dir": str(folder / "runs"),
            "models_dir": str(folder / "models"),
        }
        self.model = folder / "models" / "custom-dnd-tiny-llama.gguf"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        self.config.write_text(yaml.safe_dump(self.settings))
        command = [sys.executable, "-m", "pipeline", "train", "--config", str(self.config), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=600)
        return process.returncode, out, err

    @property
    def manifest(self) -> dict:
        return json.loads(max((self.folder / "runs").glob("*/manifest.json"), key=os.path.getmtime).read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base, corpus):
    place = Place(tmp_path_factory.mktemp("finished"), base, corpus)
    code, out, err = place.run()
    assert code == 0, err
    place.first = place.model.read_bytes()
    return place, out, err


def test_a_run_ends_with_the_two_contract_lines(finished):
    place, out, _ = finished
    assert out.splitlines()[-2:] == [f'modelPath: "{place.model.as_posix()}"', "mmprojPath: null"]
    assert place.model.stat().st_size > 1_000_000


def test_the_metadata_has_every_key_of_the_contract(finished):
    place, _, _ = finished
    metadata = json.loads((place.folder / "models" / "model-metadata.json").read_text())
    assert set(metadata) >= {
        "model_name", "base_model", "training_date", "training_steps", "final_loss", "validation_accuracy", "tool_call_accuracy",
        "quantization_level", "file_size_mb", "compatible_platforms", "recommended_context_length", "supported_tools",
        "sha256", "run_id", "baseline_tool_call_accuracy", "runtimes",
    }  # fmt: skip
    assert metadata["supported_tools"] == ["roll", "check", "health", "inventory", "spellcast"]


def test_the_summary_names_file_size_accuracy_and_stage_times(finished):
    _, _, err = finished
    for word in ("custom-dnd-tiny-llama.gguf", "MB", "untuned", "held-out DM turns", "training", "stages"):
        assert word in err


def test_a_second_run_skips_everything_and_says_why(finished):
    place, out, _ = finished
    before = place.manifest
    code, again, err = place.run()
    assert (code, again) == (0, out)
    for stage in ("data", "training", "export", "parity", "validation"):
        assert f"· {stage}: skipped, nothing it depends on has changed" in err
    assert place.manifest == before


@pytest.mark.dear
def test_another_quantisation_keeps_the_training(finished):
    place, _, _ = finished
    code, _, err = place.run("--quant", "Q6_K")
    assert code == 0, err
    assert "· training: skipped, taken over from an earlier run" in err
    assert "✓ export" in err


def test_the_manifest_holds_the_datasets_version_and_what_changed_since_the_last_run(tmp_path):
    corpus, journeys = write_corpus(tmp_path / "data", 10), []
    for files_of_data in (10, 12):
        write_corpus(corpus, files_of_data)
        settings = {"data": {"folder": corpus}, "output_dir": tmp_path / "runs"}
        journeys.append(Journey(Config.model_validate(settings), Reporter("plain", quiet=True), 1))
        run.data(journeys[-1])
    first, second = (journey.run.manifest()["stages"]["data"]["facts"] for journey in journeys)
    assert first["digest"] != second["digest"] and first["tools"]["inventory"] == 10 and "since" not in first
    assert second["since"]["run"] == journeys[0].run.run_id
    assert "tools inventory: 10 → 12 (+2)" in second["since"]["changes"]


@pytest.mark.dear
def test_killed_and_started_again_ends_in_the_same_bytes(finished, tmp_path, base, corpus):
    place = Place(tmp_path, base, corpus)
    killed = 0
    for pattern in ("runs/*/training/checkpoints/checkpoint-*", "runs/*/export/*"):
        process = place.start()
        deadline = time.monotonic() + 300
        while process.poll() is None and not list(tmp_path.glob(pattern)) and time.monotonic() < deadline:
            time.sleep(0.05)
        killed += process.poll() is None
        process.kill()
        process.communicate()
    code, _, err = place.run()
    assert code == 0, err
    assert killed == 2
    assert place.model.read_bytes() == finished[0].first
    assert not list(tmp_path.glob("models/.*.tmp"))


def test_ctrl_c_exits_130_and_says_how_to_go_on(tmp_path, base, corpus):
    place = Place(tmp_path, base, corpus)
    process = place.start()
    while process.poll() is None and not list(tmp_path.glob("runs/*/training/metrics.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-1].startswith("interrupted: ")


def test_a_refused_model_leaves_the_shelf_alone(finished, base, corpus):
    place, _, _ = finished
    before = {path.name: path.read_bytes() for path in (place.folder / "models").iterdir() if path.is_file()}
    strict = Place(place.folder, base, corpus)
    strict.settings["gate"] = {"enabled": True, "min_tool_call_accuracy": 1.0}
    code, out, err = strict.run()
    assert code == 3
    assert "tool-call accuracy" in err and "modelPath" not in out
    assert {path.name: path.read_bytes() for path in (place.folder / "models").iterdir() if path.is_file()} == before


def test_json_output_is_json_only_and_ends_with_the_result(finished):
    place, _, _ = finished
    code, out, _ = place.run("--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert (
        events[-1]["event"] == "result"
        and events[-1]["modelPath"].endswith(".gguf")
        and events[-1]["mmprojPath"] is None
    )


def test_faulty_data_is_explained_before_anything_else(tmp_path, base, corpus):
    place = Place(tmp_path, base, corpus)
    (tmp_path / "data" / "combat").mkdir(parents=True)
    (tmp_path / "data" / "combat" / "broken.md").write_text(
        "# SYSTEM\nRole: Dungeon Master\n\n# CONVERSATION\n## User\nHi\n"
    )
    place.settings["data"]["folder"] = str(tmp_path / "data")
    code, _, err = place.run()
    assert code == 1
    assert "broken.md:" in err and "World" in err
    assert not (tmp_path / "models").exists()


def test_an_empty_data_folder_is_explained(tmp_path, base, corpus):
    place = Place(tmp_path, base, corpus)
    (tmp_path / "data").mkdir()
    place.settings["data"]["folder"] = str(tmp_path / "data")
    code, _, err = place.run()
    assert code == 1 and str(tmp_path / "data") in err


def test_two_runs_at_once_are_told_apart(tmp_path, base, corpus):
    place = Place(tmp_path, base, corpus)
    first = place.start()
    while not (tmp_path / "runs" / ".lock").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    code, _, err = place.run()
    first.kill()
    first.communicate()
    assert code == 1 and "another run is at work" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "training.epoch=2"], "training.epoch"),
        (["--set", "nonsense"], "key=value"),
        (["--max-size", "huge"], "--max-size"),
        (["--quant", "Q3"], "quantization"),
        (["--preset", "fast"], "no preset 'fast'"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_bad_usage_exits_2_and_names_the_fault(arguments, words):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "train", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert words in done.stderr


def test_help_loads_no_torch():
    code = "import sys; sys.argv = ['pipeline', 'train', '--help']\nfrom pipeline import cli\ntry:\n cli.main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
