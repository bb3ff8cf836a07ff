"""The bake file and the Dockerfile, asked of the real builder; nothing is built here."""

import json
import re
import subprocess

import pytest

from tests.containers.machine import BASE, ROOT

pytestmark = pytest.mark.containers
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
STAGES = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)


@pytest.fixture(scope="module")
def bake(buildx):
    command = [
        "docker",
        "buildx",
        "bake",
        "--print",
        "default",
        "check",
        "ci",
        "runtime",
        "dev",
        "release-cpu",
        "model-cuda",
    ]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return json.loads(printed)["target"]


def test_every_target_builds_a_stage_that_there_is(bake):
    gpu = (ROOT / "docker/Dockerfile.gpu").read_text(encoding="utf-8")
    for name, target in bake.items():
        stages = STAGES if target["dockerfile"] == "Dockerfile" else re.findall(r" AS (\S+)$", gpu, re.MULTILINE)
        assert target["target"] in stages, name


def test_every_target_and_group_says_what_it_is_for(buildx):
    command = ["docker", "buildx", "bake", "--list=type=targets,format=json"]
    listed = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    silent = {entry["name"] for entry in listed if not entry.get("description") and not entry.get("group")}
    assert silent == set()


def test_a_target_is_named_like_its_stage_and_variant(bake):
    for name in ("runtime-cpu", "runtime-cuda", "dev-cpu", "dev-cuda"):
        stage, variant = name.split("-")
        assert (bake[name]["target"], bake[name]["args"]["VARIANT"]) == (stage, variant)


def test_images_carry_provenance_and_a_bill_of_materials_and_the_model_folder_neither(bake):
    kinds = {attestation["type"]: attestation for attestation in bake["runtime-cpu"]["attest"]}
    assert kinds["provenance"]["mode"] == "max"
    assert "sbom" in kinds
    assert "attest" not in bake["model"]


def test_cpu_images_are_released_for_two_architectures(bake):
    assert bake["release-cpu"]["platforms"] == ["linux/amd64", "linux/arm64"]


def test_the_gpu_is_asked_for_by_one_target_alone(bake):
    assert [name for name, target in bake.items() if target.get("entitlements")] == ["model-cuda"]


def test_training_and_export_have_no_network():
    chapter = DOCKERFILE.split("AS train\n")[1]
    assert chapter.count("RUN ") == chapter.count("RUN --network=none") == 2


def test_the_cuda_images_compile_llama_cpp_with_the_compiler_of_their_own_cuda():
    def series(lock, package):
        text = (ROOT / f"requirements/{lock}.txt").read_text(encoding="utf-8")
        return re.search(rf"^{package}==(\d+\.\d+)\.", text, re.MULTILINE)[1]

    assert "FROM toolchain-${VARIANT} AS llama-cpp\n" in DOCKERFILE
    wanted = series("cuda", "nvidia-cuda-runtime")
    assert {series("nvcc", f"nvidia-{name}") for name in ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-cccl")} == {wanted}


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_docker_finds_no_fault_in_the_dockerfile(engine, variant):
    arguments = ["--build-arg", f"BASE_IMAGE={BASE}", "--build-arg", f"VARIANT={variant}"]
    command = ["docker", "buildx", "build", "--check", *arguments, "."]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout
    assert "no warnings found" in answer.stdout + answer.stderr


def test_a_planted_fault_is_found(engine, tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM scratch as lower\nENV A b\n")
    answer = subprocess.run(
        ["docker", "buildx", "build", "--check", tmp_path], capture_output=True, text=True, check=False
    )
    assert answer.returncode != 0
