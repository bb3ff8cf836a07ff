"""A real engine, asked through its SDK; where none answers these tests are skipped and say so,
or fail where they are insisted on."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.containers import machine

ROOT = Path(__file__).parents[2]


def _cannot(why):
    """Skip, but where these tests are insisted on (`.ci/run` does once it has found an engine) fail."""
    (pytest.fail if os.environ.get("DM_FORGE_CONTAINERS") == "1" else pytest.skip)(why)


@pytest.fixture(scope="session")
def buildx():
    if subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode != 0:
        _cannot("docker buildx is not installed")


@pytest.fixture(scope="session")
def engine(buildx):
    import docker

    try:
        client = docker.from_env(timeout=600)
        client.ping()
    except docker.errors.DockerException as error:
        _cannot(f"no Docker engine answers: {error}")
    if not os.environ.get("BASE_IMAGE") and machine.BASE in machine.tags(client):
        os.environ["BASE_IMAGE"] = machine.BASE  # an engine that has its own base cannot be asked for the pinned one
    return client


@pytest.fixture(scope="session")
def image(engine):
    """The CPU image, built or found again by the launcher as `--where container` does it."""
    answer = machine.launch("doctor")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return engine.images.get("dm-forge:runtime-cpu")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """What the launcher mounts: data and settings, and the base model in the cache, all belonging to another user."""
    tmp_path = tmp_path_factory.mktemp("workspace")
    for name in ("configs", "training_data"):
        shutil.copytree(ROOT / name, tmp_path / name)
    bases = tmp_path / "artifacts/cache/bases"
    (tmp_path / "assets/models").mkdir(parents=True)
    ignore = shutil.ignore_patterns(".*")  # locks belong to who made them
    shutil.copytree(ROOT / "artifacts/cache/bases", bases, copy_function=os.link, ignore=ignore)
    for folder in (tmp_path, *tmp_path.rglob("*")):
        if folder.is_dir():
            os.chown(folder, machine.STRANGER, machine.STRANGER)
    return tmp_path


@pytest.fixture(scope="session")
def hermetic(image, tmp_path_factory):
    """The folder that `bake model` writes: a model trained inside the build, and never taken from an earlier one."""
    folder = tmp_path_factory.mktemp("model")
    anew = tmp_path_factory.mktemp("bake") / "anew.json"  # --set does not know this attribute
    anew.write_text(json.dumps({"target": {"model": {"no-cache-filter": ["train", "export"]}}}))
    files = ("--file", "docker-bake.hcl", "--file", str(anew))
    output = f"model.output=type=local,dest={folder}"
    machine.bake(*files, "model", "--set", output, TRAIN_OPTIONS=" ".join(machine.SMOKE))
    return folder


@pytest.fixture(scope="session")
def dev(image):
    machine.bake("dev-cpu", "--load", "--provenance=false", "--sbom=false")
    return "dm-forge:dev-cpu"
