"""A model trained in the container and inside the build: without rights, without network, killed and gone on with."""

import hashlib
import json
import signal
import subprocess
import time

import pytest

from tests.containers.machine import ROOT, SMOKE, launch, start

pytestmark = pytest.mark.containers
MODEL = "custom-dnd-smollm2-135m.gguf"


@pytest.fixture(scope="module")
def resumed(image, engine, workspace):
    """A run by a stranger on a read-only root without network, killed at its first checkpoint, then run to its end."""
    folder = workspace
    killed = start(engine, folder, "train", *SMOKE)
    try:
        _wait_for(lambda: any(folder.glob("artifacts/runs/*/training/checkpoints/checkpoint-*")), killed)
        killed.kill()
        assert killed.wait()["StatusCode"] == 137
    finally:
        killed.remove(force=True)
    again = start(engine, folder, "train", *SMOKE)
    try:
        code = again.wait()["StatusCode"]
        said = again.logs(stdout=True, stderr=False).decode()
        everything = again.logs().decode()
    finally:
        again.remove(force=True)
    assert code == 0, everything
    return folder, said, everything


def test_a_killed_container_goes_on_where_it_stopped_and_prints_the_two_lines(resumed):
    _, said, everything = resumed
    assert said.splitlines()[-2:] == [f'modelPath: "./assets/models/{MODEL}"', "mmprojPath: null"]
    assert "going on from step" in everything


def test_what_it_makes_belongs_to_the_caller(resumed):
    folder, _, _ = resumed
    made = [folder / "assets/models" / MODEL, *folder.glob("artifacts/runs/*/manifest.json")]
    assert {path.stat().st_uid for path in made} == {12345}


def test_the_model_made_inside_the_build_has_the_same_bytes(resumed, hermetic):
    folder, _, _ = resumed
    models = folder / "assets/models"
    assert _made_of(hermetic) == _made_of(models)  # tells the first stage that differs
    assert _sha256(hermetic / MODEL) == _sha256(models / MODEL)


def test_the_build_leaves_only_what_the_app_ships(hermetic):
    stem = MODEL.removesuffix(".gguf")
    papers = {f"{stem}.cdx.json", f"{stem}.provenance.json"}
    ours = {MODEL, "model-metadata.json", "cactus.config.json", "dm-tools.js", "dm-tools.d.ts", *papers}
    assert {path.name for path in hermetic.iterdir()} == ours
    assert json.loads((hermetic / "model-metadata.json").read_text())["sha256"] == _sha256(hermetic / MODEL)


def test_a_usage_error_keeps_its_exit_code(image):
    answer = launch("train", "--preset", "nowhere")
    assert answer.returncode == 2
    assert "there is no preset 'nowhere'" in answer.stderr


def test_ctrl_c_ends_the_container_and_is_told(image, engine):
    command = ["node", "scripts/launcher/run.js", "train", *SMOKE, "--seed", "5", "--where", "container"]
    before = {container.id for container in engine.containers.list()}
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    said = ""
    for line in child.stderr:
        said += line
        if "data" in line and "image" not in line:
            child.send_signal(signal.SIGINT)
            break
    said += child.stderr.read()
    assert child.wait(timeout=120) == 130, said
    assert "the same command goes on from there" in said
    assert {container.id for container in engine.containers.list()} <= before


def test_the_image_found_again_is_not_built_again(image):
    answer = launch("data", "check")
    assert answer.returncode == 0, answer.stderr
    assert "exporting to image" not in answer.stderr


def _wait_for(condition, container, seconds=1200):
    deadline = time.monotonic() + seconds
    while not condition():
        container.reload()
        assert container.status == "running", container.logs().decode()
        assert time.monotonic() < deadline, container.logs().decode()
        time.sleep(0.2)


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _made_of(models):
    """Digests of the dataset and of every stage's weights."""
    said = json.loads((models / MODEL.replace(".gguf", ".provenance.json")).read_text())["predicate"]
    items = said["buildDefinition"]["resolvedDependencies"] + said["runDetails"]["byproducts"]
    return {item["name"]: item["digest"] for item in items}
