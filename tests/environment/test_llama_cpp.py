"""The build machinery, on a stand-in that compiles in a second; the real build is used by every other test."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import files
from pipeline.artifacts import LlamaCpp
from pipeline.environment import doctor, llama_build, llama_cpp
from pipeline.errors import MachineError
from pipeline.progress import Reporter
from tests.environment import mini

KILLED = """
import sys
from pathlib import Path
from pipeline.environment import llama_cpp
from pipeline.progress import Reporter
from tests.environment import mini
root = Path(sys.argv[1])
with Reporter("plain").stage("llama.cpp") as stage:
    llama_cpp.ensure(root / "cache", stage, root / "tree", mini.recipe(root, root / "tree"))
"""


@pytest.fixture(autouse=True)
def _no_build_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests build their own; in a container the image's would be taken for it."""
    for name in ("DM_FORGE_LLAMA", "DM_FORGE_LLAMA_PORTABLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    mini.recipe(tmp_path, mini.tree(tmp_path / "tree"))
    return tmp_path


def test_the_tools_run_and_the_converter_lies_beside_them(root: Path) -> None:
    built = _ensure(root)
    assert subprocess.run([built.tool("mini-tool")], capture_output=True, check=True).stdout == b"tool\n"
    assert built.converter.is_file()
    assert (built.source / "conversion/base.py").is_file()
    assert not (built.source / "src").exists()
    assert built.commit == mini.COMMIT


def test_the_second_time_nothing_is_built(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = _ensure(root)
    before = built.tool("mini-tool").stat().st_mtime_ns
    monkeypatch.setattr(llama_build, "configure", lambda *_: pytest.fail("cmake was started"))
    assert _ensure(root) == built
    assert built.tool("mini-tool").stat().st_mtime_ns == before


def test_no_work_folder_is_left_and_no_path_of_this_machine_is_recorded(root: Path) -> None:
    built = _ensure(root)
    shelf = root / "cache" / "llama.cpp"
    assert not list(shelf.glob(".*.work"))
    assert str(root) not in (built.binaries.parent / "build.json").read_text(encoding="utf-8")
    assert not [flag for flag in built.build_flags if str(root) in flag]


def test_a_tool_that_was_cut_short_is_built_again(root: Path) -> None:
    built = _ensure(root)
    built.tool("mini-other").write_bytes(b"cut")
    assert subprocess.run([_ensure(root).tool("mini-other")], check=False).returncode == 7


def test_another_compiler_or_setting_is_another_build(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _ensure(root)
    monkeypatch.setenv("DM_FORGE_LLAMA_PORTABLE", "1")
    assert llama_cpp.find(root / "cache", mini.recipe(root, root / "tree")) is None
    monkeypatch.delenv("DM_FORGE_LLAMA_PORTABLE")
    assert llama_cpp.find(root / "cache", mini.recipe(root, root / "tree")) == first


def test_nvcc_adds_the_cuda_backend_to_a_portable_build_and_another_nvcc_is_another_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DM_FORGE_LLAMA_PORTABLE", "1")
    monkeypatch.setenv("DM_FORGE_CUDA_ARCHITECTURES", "89-real")
    without = llama_cpp._inputs(llama_cpp.RECIPE, "c++")
    assert "nvcc" not in without
    (tmp_path / "nvcc").write_text("#!/bin/sh\necho 'nvcc: planted'\necho 'Build cuda_13.0'\n")
    (tmp_path / "nvcc").chmod(0o755)
    planted = llama_cpp._inputs(llama_cpp.RECIPE, "c++")
    added = {"-DGGML_CUDA=ON", "-DGGML_CUDA_NO_VMM=ON", "-DCMAKE_CUDA_ARCHITECTURES=89-real"}
    assert set(planted["flags"]) - set(without["flags"]) == added
    assert planted["nvcc"] == "Build cuda_13.0"


def test_an_image_brings_its_own_build_and_it_must_be_of_this_source(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = _ensure(root)
    image = root / "image"
    shutil.copytree(built.binaries.parent, image)
    shutil.rmtree(root / "cache")
    monkeypatch.setenv("DM_FORGE_LLAMA", str(image))
    assert _ensure(root).binaries == image / "bin"
    assert not (root / "cache").exists()
    record = files.read_json(image / "build.json")
    record["inputs"]["commit"] = "0" * 40
    files.write_json(image / "build.json", record)
    with pytest.raises(MachineError, match="its commit is '0000") as caught:
        _ensure(root)
    assert "build the image again" in str(caught.value)
    assert not {finding.name: finding for finding in doctor.doctor(root)}["llama.cpp"].ok


def test_without_a_compiler_the_error_says_what_to_install(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MachineError, match=r"no working C\+\+ compiler") as caught:
        _ensure(root)
    assert "apt-get install g++" in str(caught.value)
    assert not list((root / "cache").rglob("build.json"))


def test_a_build_made_earlier_serves_without_a_compiler(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = _ensure(root)
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert _ensure(root) == built


def test_a_compile_error_shows_the_lines_and_names_the_log(root: Path) -> None:
    mini.tree(root / "tree", tool="int main() { return undeclared; }\n")
    with pytest.raises(MachineError, match="undeclared") as caught:
        _ensure(root)
    assert caught.value.where is not None
    assert Path(caught.value.where).is_file()
    assert llama_cpp.find(root / "cache", mini.recipe(root, root / "tree")) is None


def test_a_compiler_without_openmp_builds_the_tools_and_says_that_the_kernels_are_missing(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = mini.recipe(root, root / "tree")
    project = (llama_cpp.RECIPE.project / "CMakeLists.txt").read_text(encoding="utf-8")
    kernels = re.search(r"^if\(CMAKE_SYSTEM_NAME STREQUAL \"Linux\".*?^endif\(\)$", project, re.DOTALL | re.MULTILINE)
    assert kernels
    without = "set(CMAKE_DISABLE_FIND_PACKAGE_OpenMP ON)\nset(CMAKE_SYSTEM_NAME Linux)\n"
    without += "set(CMAKE_SYSTEM_PROCESSOR x86_64)\n"
    (recipe.project / "CMakeLists.txt").write_text(mini.CMAKE + without + kernels[0] + "\n", encoding="utf-8")
    recipe = replace(recipe, targets=(*recipe.targets, llama_build.KERNELS))
    with Reporter("plain").stage("llama.cpp") as stage:
        built = llama_cpp.ensure(root / "cache", stage, root / "tree", recipe)
    assert built.kernels is None and built.tool("mini-tool").is_file()
    assert "install libomp-dev" in capsys.readouterr().err
    assert llama_cpp.find(root / "cache", recipe) == built


def test_a_full_disk_is_refused_before_the_work_with_the_number(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**6, 10**6))
    with pytest.raises(MachineError, match=r"600\.0 MB needed, 1\.0 MB free"):
        _ensure(root)


def test_a_build_killed_half_way_leaves_no_half_cache_and_is_continued(root: Path) -> None:
    slow = root / "slow-c++"
    files.write_text(
        slow, f'#!/bin/sh\ncase "$*" in *src/other.cpp*) sleep 3;; esac\nexec {llama_build.find_compiler().cxx} "$@"\n'
    )
    slow.chmod(0o755)
    environment = {**os.environ, "CXX": str(slow), "PYTHONPATH": os.pathsep.join(sys.path), "DM_FORGE_BUILD_JOBS": "1"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(root)], env=environment)
    _wait_for(lambda: any(root.glob("cache/llama.cpp/.*.work/build/CMakeFiles")))
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((root / "cache").rglob("build.json"))
    again = subprocess.run(
        [sys.executable, "-c", KILLED, str(root)], env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    record = json.loads(next((root / "cache").rglob("build.json")).read_text(encoding="utf-8"))
    assert set(record["files"]) == {"bin/mini-tool", "bin/mini-other"}


def test_two_runs_at_once_build_once(root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(root)]
    runs = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert sum("building 2 tools" in text for text in said) == 1, said


def test_a_work_folder_that_cmake_refuses_is_started_afresh(root: Path) -> None:
    recipe = mini.recipe(root, root / "tree")
    inputs = llama_cpp._inputs(recipe, llama_build.find_compiler().version)
    work = root / "cache" / "llama.cpp" / f".{llama_cpp._key(inputs)}.work"
    files.write_text(work / "build" / "CMakeCache.txt", "CMAKE_GENERATOR:INTERNAL=Unix Makefiles\n")
    assert _ensure(root).tool("mini-tool").is_file()


def test_the_number_of_jobs_follows_memory_and_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert llama_build.jobs() >= 1
    monkeypatch.setenv("DM_FORGE_BUILD_JOBS", "3")
    assert llama_build.jobs() == 3


def test_running_out_of_memory_or_disk_is_told_apart() -> None:
    memory = llama_build._explain("x", ["c++: fatal error: Killed signal terminated program cc1plus"], Path("l"))
    assert "DM_FORGE_BUILD_JOBS=1" in str(memory)
    disk = llama_build._explain("x", ["error: No space left on device"], Path("l"))
    assert "disk is full" in str(disk)


def test_the_doctor_finds_this_machine_fit_and_a_missing_compiler_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = {finding.name: finding for finding in doctor.doctor(tmp_path)}
    assert findings["compiler"].ok
    assert findings["packages"].ok
    monkeypatch.setenv("CXX", "/nowhere/c++")
    sick = {finding.name: finding for finding in doctor.doctor(tmp_path)}["compiler"]
    assert not sick.ok
    assert "apt-get install g++" in sick.fix


def _ensure(root: Path) -> LlamaCpp:
    with Reporter("plain", quiet=True).stage("llama.cpp") as stage:
        return llama_cpp.ensure(root / "cache", stage, root / "tree", mini.recipe(root, root / "tree"))


def _wait_for(condition: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)
