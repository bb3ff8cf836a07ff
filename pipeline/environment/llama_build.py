"""Compile llama.cpp with the user's C++ compiler; cmake and ninja come from the venv's wheels."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline import files
from pipeline.environment import hardware
from pipeline.errors import MachineError
from pipeline.progress import Stage

KERNELS = "dm-train"  # of training on a CPU with AVX-512 and bf16; nowhere else
TARGETS = (
    "llama-quantize",
    "llama-server",
    "llama-tokenize",
    "llama-imatrix",
    "llama-perplexity",
    "llama-mtmd-cli",
    "llama-bench",
    "dm-logits",
    *((KERNELS,) if (sys.platform, platform.machine()) == ("linux", "x86_64") else ()),
)
_COMMON_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # it would be downloaded
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_SUBPROCESS=OFF",  # the server need not start programs
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_BUILD_NUMBER=0",
)
_PORTABLE_FLAGS = (
    "-DGGML_NATIVE=OFF",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_CPU_ALL_VARIANTS=ON",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",  # the folder may be moved: tools find their libraries beside them
    "-DCMAKE_SHARED_LINKER_FLAGS=-s",
    "-DCMAKE_MODULE_LINKER_FLAGS=-s",
)
_NATIVE_FLAGS = ("-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF")
_PROGRESS = re.compile(r"^\[(\d+)/(\d+)\] ")
_BYTES_A_JOB = 1_200_000_000  # the largest translation unit needs about a gigabyte


@dataclass(frozen=True)
class Compiler:
    """A C and a C++ compiler that answer; `version` is the C++ one's first line."""

    c: str
    cxx: str
    version: str


def find_compiler() -> Compiler:
    """CC and CXX where set, else the usual names. Raises MachineError naming what to install."""
    cxx = next(
        (found for name in _names("CXX", "c++", "g++", "clang++") if (found := shutil.which(name)) and _version(found)),
        None,
    )
    c = next(
        (found for name in _names("CC", "cc", "gcc", "clang") if (found := shutil.which(name)) and _version(found)),
        None,
    )
    if cxx is None or c is None:
        raise MachineError(
            f"there is no working {'C++' if cxx is None else 'C'} compiler: llama.cpp is built from source, once",
            where=f"{'CXX' if cxx is None else 'CC'}={os.environ.get('CXX' if cxx is None else 'CC', '(not set)')}, PATH",
            fix="Debian, Ubuntu: apt-get install g++ · Fedora: dnf install gcc-c++ · macOS: xcode-select --install",
        )
    return Compiler(c, cxx, _version(cxx))


def find_tool(name: str) -> str:
    """cmake or ninja: the venv's wheel, else the one on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise MachineError(
            f"there is no {name}: it is a wheel in the locked requirements, and not in this venv",
            where=str(beside.parent),
            fix="remove .venv/.dm-forge-* and run again, or install it with the system's package manager",
        )
    return found


def flags(portable: bool, commit: str) -> tuple[str, ...]:
    """CMake's settings for this machine; none of them holds a path."""
    chosen = [*_COMMON_FLAGS, f"-DLLAMA_BUILD_COMMIT={commit[:10]}", *(_PORTABLE_FLAGS if portable else _NATIVE_FLAGS)]
    if hardware.metal().value:
        chosen += ["-DGGML_METAL=ON", "-DGGML_METAL_EMBED_LIBRARY=ON"]
    if shutil.which("nvcc") and (portable or hardware.cuda()[0].value):
        chosen += ["-DGGML_CUDA=ON", *(_portable_cuda() if portable else ["-DCMAKE_CUDA_ARCHITECTURES=native"])]
    if sys.platform != "darwin":
        chosen.append("-DCMAKE_EXE_LINKER_FLAGS=-s")
    return tuple(chosen)


def nvcc_version(settings: tuple[str, ...]) -> str | None:
    """Last line of what nvcc says of itself, where these settings want it."""
    return "".join(_answer("nvcc")[-1:]) if "-DGGML_CUDA=ON" in settings else None


def _portable_cuda() -> list[str]:
    """For every GPU that ggml knows, or those that DM_FORGE_CUDA_ARCHITECTURES names; built where there is no driver."""
    wanted = os.environ.get("DM_FORGE_CUDA_ARCHITECTURES")
    return ["-DGGML_CUDA_NO_VMM=ON"] + ([f"-DCMAKE_CUDA_ARCHITECTURES={wanted}"] if wanted else [])


def jobs() -> int:
    """How many files to compile at once: by cores and by memory; DM_FORGE_BUILD_JOBS overrides."""
    given = os.environ.get("DM_FORGE_BUILD_JOBS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return max(1, min(hardware.cores().value, hardware.memory().value // _BYTES_A_JOB))


def configure(
    project: Path, source: Path, build: Path, compiler: Compiler, settings: tuple[str, ...], log: Path
) -> None:
    """Run cmake. A folder left by a killed run is continued, or started afresh when cmake refuses it."""
    command = [find_tool("cmake"), "-G", "Ninja", "-S", str(project), "-B", str(build), f"-DLLAMA_SOURCE={source}"]
    command += [f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}", *settings]
    existed = build.exists()
    code, output = _run(command, _environment(compiler), log, lambda line: None, ())
    if code != 0 and existed:
        files.remove(build)
        code, output = _run(command, _environment(compiler), log, lambda line: None, ())
    if code != 0:
        raise _explain("cmake could not configure llama.cpp", output, log)


def compile_targets(
    build: Path, targets: tuple[str, ...], compiler: Compiler, stage: Stage, log: Path, lock: int
) -> None:
    """Run ninja with live progress. The compilers inherit `lock`, so that a killed run's leftovers are waited for."""

    def show(line: str) -> None:
        if match := _PROGRESS.match(line):
            stage.update(int(match[1]), int(match[2]), "files")

    command = [find_tool("ninja"), "-C", str(build), "-j", str(jobs()), *targets]
    code, output = _run(command, _environment(compiler), log, show, (lock,))
    if code != 0:
        raise _explain("llama.cpp could not be compiled", output, log)


def _environment(compiler: Compiler) -> dict[str, str]:
    """No flags from outside, and no git: asked inside the cache it would name this project's commit, not llama.cpp's."""
    dropped = ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "MAKEFLAGS")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {
        **kept,
        "CC": compiler.c,
        "CXX": compiler.cxx,
        "GIT_DIR": os.devnull,
        "NINJA_STATUS": "[%f/%t] ",
        "LC_ALL": "C",
    }


def _run(
    command: list[str], environment: dict[str, str], log: Path, show: Callable[[str], None], inherit: tuple[int, ...]
) -> tuple[int, list[str]]:
    """Run, write every line to the log and show it; gives the exit code and the last lines."""
    lines: list[str] = []
    with log.open("a", encoding="utf-8") as out:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=inherit,
        )
        try:
            for line in process.stdout or ():
                out.write(line)
                lines = [*lines[-199:], line.rstrip()]
                show(line)
            return process.wait(), lines
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _explain(what: str, output: list[str], log: Path) -> MachineError:
    text = "\n".join(output)
    if "No space left on device" in text:
        fix = "the disk is full: free some space and run again; what is compiled is kept"
    elif "Killed signal" in text or "virtual memory exhausted" in text or "out of memory" in text:
        fix = "the compiler ran out of memory: run again with DM_FORGE_BUILD_JOBS=1; what is compiled is kept"
    else:
        fix = "read the log; an old compiler is the usual cause (GCC 10 or Clang 10 are the oldest that do)"
    first = next(
        (index for index, line in enumerate(output) if "FAILED" in line or "error" in line.lower()),
        max(0, len(output) - 8),
    )
    shown = [line[:200] for line in output[first : first + 8]]
    return MachineError(f"{what}:\n  " + "\n  ".join(shown), where=str(log), fix=fix)


def _names(variable: str, *usual: str) -> tuple[str, ...]:
    given = os.environ.get(variable)
    return (given,) if given else usual


def _version(compiler: str) -> str:
    return "".join(_answer(compiler)[:1])


def _answer(compiler: str) -> list[str]:
    """Lines of `--version`; none when it does not run (macOS ships stubs that only ask for an install)."""
    try:
        answer = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []
