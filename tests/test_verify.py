"""A run built again from its manifest: what agrees, what is refused, what is found out."""

import json
import shutil
from dataclasses import replace

import pytest

from pipeline import files, verify
from pipeline.artifacts import Run
from pipeline.config import Config
from pipeline.errors import MachineError, UsageError, ValidationError
from pipeline.journey import Journey, close_manifest, describe, exclusive
from pipeline.progress import Reporter
from tests import tiny
from tests.provenance import made
from tests.test_run import SETTINGS

QUIET = Reporter("plain", quiet=True)
CHECKPOINT = "training/adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, corpus, smollm2, llama):
    """A finished run without the playing: a tiny Llama through training, export and parity."""
    folder = tmp_path_factory.mktemp("recorded")
    base = tiny.checkpoint(folder / "tiny-llama", "llama", smollm2.path)
    settings = SETTINGS | {
        "base": str(base),
        "preset": "tiny",
        "data": {"folder": str(corpus), "drill_lines": 16},
        "training": SETTINGS["training"] | {"max_tokens": 1500},
        "output_dir": folder / "runs",
        "models_dir": folder / "models",
    }
    journey = Journey(Config.model_validate(settings), QUIET, 1)
    found, tools = verify.inputs(journey, {})
    verify.rebuild(journey, found, tools)
    close_manifest(journey, describe(journey, found, tools), {})
    return journey.run


@pytest.fixture
def again(recorded, tmp_path):
    """A copy of the run that may be spoilt."""
    return Run(shutil.copytree(recorded.folder, tmp_path / "runs" / recorded.run_id))


def config(one):
    return Config(output_dir=one.folder.parent)


def change(one, *path, to):
    manifest = part = one.manifest()
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = to
    one.write_manifest(manifest)


@pytest.mark.dear
def test_a_run_built_again_has_the_same_bytes(again, capsys):
    compared = verify.verify(again.run_id, config(again), QUIET)
    states = {line.output: line.state for line in compared}
    assert states.pop("training/metrics.jsonl") == "same but for times"
    assert set(states.values()) == {"same"}
    assert {"data/dataset.jsonl", CHECKPOINT, "export/model-Q8_0.gguf", "export/parity.json"} <= set(states)
    assert f"✓ {CHECKPOINT}: same" in capsys.readouterr().out
    assert not (again.folder.parent.parent / "verify" / again.run_id).exists()


@pytest.mark.dear
def test_a_planted_digest_is_found_and_both_runs_are_kept(again, capsys):
    path = again.folder / "data" / "split.json"
    path.unlink()
    path.write_text("{}")
    change(again, "stages", "data", "outputs", "data/split.json", to=files.sha256_file(path))
    with pytest.raises(ValidationError, match=r"1 of \d+ outputs are not what the manifest says") as raised:
        verify.verify(str(again.folder), config(again), QUIET)
    assert "split.json differs first" in str(raised.value) and "faulty memory" in str(raised.value)
    told = capsys.readouterr().out.splitlines()
    assert [line[:27] for line in told if not line.startswith("✓")] == ["✗ data/split.json: differs "]
    assert any(line.startswith("✓ export/model-Q8_0.gguf: same (") for line in told)
    assert list((again.folder.parent.parent / "verify").glob("*/*/data/split.json"))


def test_a_second_verification_leaves_alone_what_the_first_one_builds(tmp_path):
    run = Run(tmp_path / "runs" / "tiny-1")
    settings = Config().model_dump(mode="json")
    run.write_manifest({"run_id": run.run_id, "exit": 0, "config": settings, "host": {"threads": 1}, "stages": {}})
    built = tmp_path / "verify" / run.run_id / "half-built"
    files.write_text(built, "by the first one")
    with exclusive(tmp_path / "verify"), pytest.raises(MachineError, match="another run is at work"):
        verify.verify(run.run_id, config(run), QUIET)
    assert built.is_file()


INPUTS = [
    (("inputs", "data"), "0" * 64, "the data folder or its settings: 0000"),
    (("inputs", "base", "digest"), "0" * 64, "the base: 0000"),
    (("code",), "0" * 64, "the code of dm-forge: 0000"),
    (("llama_cpp", "commit"), "0" * 40, "llama.cpp's commit: 0000"),
    (("llama_cpp", "build_flags"), ["-DGGML_NATIVE=OFF"], "llama.cpp's build flags: -DGGML_NATIVE=OFF then"),
    (("versions", "torch"), "1.0", "torch: 1.0 then"),
    (("config", "seed"), 1, "the settings: they would name the run tiny-"),
    (("config", "nonsense"), 1, "not ones that this dm-forge knows"),
    (("config",), None, "not ones that this dm-forge knows"),
    (("lineage",), {"run_id": "tiny-1", "adapter_sha256": "0"}, "it went on from the adapter of run tiny-1"),
    (("processes",), 2, "2 processes trained it"),
]


@pytest.mark.parametrize(("path", "value", "words"), INPUTS, ids=[".".join(path) for path, _, _ in INPUTS])
def test_another_input_is_named_before_anything_is_built(again, path, value, words):
    change(again, *path, to=value)
    with pytest.raises(ValidationError, match=words.replace(".", r"\.")):
        verify.verify(again.run_id, config(again), QUIET)
    assert not list((again.folder.parent.parent / "verify").glob("*/*/data"))


def test_a_changed_scenario_is_another_input(again, tmp_path):
    folder = shutil.copytree(again.manifest()["config"]["data"]["folder"], tmp_path / "corpus")
    scenario = next(path for path in sorted(folder.rglob("*.md")) if path.parent != folder)
    scenario.write_text(scenario.read_text() + "\n")
    change(again, "config", "data", "folder", to=str(folder))
    with pytest.raises(ValidationError, match="the data folder or its settings"):
        verify.verify(again.run_id, config(again), QUIET)


@pytest.mark.parametrize(
    "output",
    ["data/dataset.jsonl", CHECKPOINT, "export/model-f16.gguf", "export/model-Q8_0.gguf", "export/parity.json"],
)
def test_a_file_changed_after_the_run_is_told_from_a_difference(again, recorded, output):
    path = again.folder / output
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    states = {line.output: line.state for line in verify.compare(again, recorded)}
    assert states.pop(output) == "changed"
    assert set(states.values()) == {"same"}


def test_a_missing_file_counts_as_changed_and_other_stages_are_only_checked(again, recorded):
    (again.folder / CHECKPOINT).unlink()
    (again.folder / "validation").mkdir()
    (again.folder / "validation" / "validation.json").write_text("{}")
    played = {"outputs": {"validation/validation.json": files.sha256_bytes(b"{}")}}
    change(again, "stages", "validation", to=played)
    lines = {line.output: line for line in verify.compare(again, recorded)}
    assert (lines[CHECKPOINT].state, lines[CHECKPOINT].found) == ("changed", "missing")
    assert lines["validation/validation.json"].state == "not rebuilt"
    assert list(lines)[-1] == "validation/validation.json"


def test_a_journal_with_another_loss_differs(again, recorded):
    path = again.folder / "training" / "metrics.jsonl"
    first, *rest = path.read_text().splitlines()
    path.unlink()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"loss": 1.5}), *rest]) + "\n")
    change(again, "stages", "training", "outputs", "training/metrics.jsonl", to=files.sha256_file(path))
    states = {line.output: line.state for line in verify.compare(again, recorded)}
    assert states["training/metrics.jsonl"] == "differs"


def test_another_machine_is_named_as_the_reason(again):
    then, now = again.manifest(), json.loads(again.manifest_path.read_text())
    now["host"]["cpu"], now["versions"]["python"] = "another", "3.13.0"
    lines = [verify.Comparison(CHECKPOINT, "differs", "a" * 64, "b" * 64)]
    told = verify.explain(lines, then, now)
    assert "adapter_model.safetensors differs first" in told
    assert "another now" in told and "3.13.0 now" in told and "threads" not in told
    assert "changed after the run" in verify.explain([replace(lines[0], state="changed")], then, now)


def test_a_run_is_called_by_the_begin_of_its_name(again, tmp_path):
    runs = again.folder.parent
    assert verify.find(again.run_id[:8], runs).run_id == again.run_id
    shutil.copytree(again.folder, runs / f"{again.run_id}-b")
    assert verify.find(again.run_id, runs).run_id == again.run_id
    with pytest.raises(UsageError, match="begins the name of 2 runs"):
        verify.find(again.run_id[:8], runs)
    with pytest.raises(UsageError, match="there is no run 'nine'"):
        verify.find("nine", runs)
    change(again, "exit", to=None)
    with pytest.raises(UsageError, match="did not end with a promoted model"):
        verify.find(again.run_id, runs)


def test_the_shelf_is_checked_against_its_papers(tmp_path, capsys):
    models = made.promoted(tmp_path)
    verify.shelf(Config(models_dir=models), QUIET)
    assert "✓ custom-dnd-tiny.gguf: sha256" in capsys.readouterr().out
