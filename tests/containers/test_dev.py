"""The devcontainer's stage, built, with its tools run as its user."""

import json

import pytest

from tests.containers.machine import ROOT

pytestmark = pytest.mark.containers


@pytest.mark.parametrize(
    "command",
    [
        "ruff --version",
        "mypy --version",
        "pytest --version",
        "python -m debugpy --version",
        "node --version",
        "npx --version",
        "git --version",
        "c++ --version",
        "cmake --version",
        "python -c 'import ipykernel, torch; print(torch.__version__)'",
    ],
)
def test_a_tool_of_the_devcontainer_runs(dev, engine, command):
    assert engine.containers.run(dev, ["sh", "-c", command], network_mode="none", remove=True)


def test_it_is_not_root_and_its_launcher_installs_nothing(dev, engine):
    mounts = {str(ROOT): {"bind": "/workspace", "mode": "ro"}}
    command = ["sh", "-c", "id -u && node scripts/launcher/run.js data check 2>&1"]
    said = engine.containers.run(dev, command, network_mode="none", volumes=mounts, remove=True).decode()
    assert said.splitlines()[0] == "1000"
    assert "installing" not in said


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_each_configuration_builds_the_dev_stage_of_its_variant(variant):
    folder = ROOT / ".devcontainer" / variant
    build = json.loads((folder / "devcontainer.json").read_text())["build"]
    assert (folder / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (build["target"], build["args"]) == ("dev", {"VARIANT": variant})
