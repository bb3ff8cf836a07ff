"""What the CUDA image says where it has no fitting GPU: the script itself, on a small file system of the test's own."""

import os
import subprocess
from pathlib import Path

import pytest

ENTRYPOINT = Path(__file__).parents[2] / "docker" / "entrypoint"
NVIDIA_SMI = """#!/bin/sh
case "$1" in
  *driver_version) echo "{driver}" ;;
  *compute_cap) echo "{capability}" ;;
  *) echo "NVIDIA Planted" ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """A function that plants files and, with a driver, nvidia-smi; it gives the entrypoint's exit code and stderr."""
    tools = tmp_path / "bin"
    tools.mkdir()
    _program(tools / "python", '#!/bin/sh\necho "pipeline: $*"\n')

    def start(*files, driver=None, capability="8.9", device="cuda", verb="train"):
        for name in files:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if driver:
            _program(tools / "nvidia-smi", NVIDIA_SMI.format(driver=driver, capability=capability))
        environment = {
            "PATH": f"{tools}:{os.defpath}",
            "DM_FORGE_ROOT": str(tmp_path),
            "DM_FORGE_DEVICE": device,
            "DM_FORGE_CUDA_DRIVER": "580",
            "DM_FORGE_CUDA_CAPABILITY": "7.5",
        }
        return subprocess.run([ENTRYPOINT, verb, "--seed", "3"], env=environment, capture_output=True, text=True)

    return start


@pytest.mark.parametrize(
    ("files", "what", "fix"),
    [
        (
            ["dev/nvidiactl", "proc/driver/nvidia/version"],
            "no NVIDIA container toolkit",
            "nvidia-ctk runtime configure",
        ),
        (["dev/dxg"], "no NVIDIA container toolkit", "nvidia-container-toolkit"),
        (["proc/driver/nvidia/version"], "started without its GPU", "--gpus all"),
        ([], "the host has no NVIDIA driver", "CPU image"),
    ],
)
def test_a_missing_gpu_is_explained_by_what_is_there(machine, files, what, fix):
    answer = machine(*files)
    assert answer.returncode == 1
    assert what in answer.stderr
    assert fix in answer.stderr


def test_an_old_driver_is_named_with_the_one_wanted(machine):
    answer = machine(driver="535.183.01")
    assert answer.returncode == 1
    assert "535.183.01" in answer.stderr
    assert "580 or newer" in answer.stderr


def test_an_old_gpu_is_named_with_the_generation_wanted(machine):
    answer = machine(driver="580.65.06", capability="6.1")
    assert answer.returncode == 1
    assert "NVIDIA Planted" in answer.stderr
    assert "6.1" in answer.stderr
    assert "7.5 or newer" in answer.stderr


def test_what_nvidia_smi_says_when_it_fails_is_not_taken_for_a_driver(machine, tmp_path):
    _program(tmp_path / "bin" / "nvidia-smi", "#!/bin/sh\necho No devices were found\nexit 6\n")
    answer = machine("proc/driver/nvidia/version")
    assert answer.returncode == 1
    assert "started without its GPU" in answer.stderr


@pytest.mark.parametrize(("driver", "capability"), [("580.65.06", "7.5"), ("595.10", "10.0"), ("1000.1", "12.0")])
def test_a_fitting_gpu_is_let_through(machine, driver, capability):
    answer = machine(driver=driver, capability=capability)
    assert (answer.returncode, answer.stdout) == (0, "pipeline: -m pipeline train --seed 3\n")


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"verb": "data"}, {"verb": "--help"}])
def test_what_needs_no_gpu_does_not_ask_for_one(machine, options):
    assert machine(**options).returncode == 0


def _program(path, text):
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
