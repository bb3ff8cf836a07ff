"""What this machine has for training and what is missing: one finding a thing, each with its reason or its cure."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pipeline import files
from pipeline.environment import hardware, llama_build, llama_cpp
from pipeline.errors import PipelineError

DISK_WANTED = 5_000_000_000  # bytes: llama.cpp, the embedded base, and one run with its exports
MEMORY_WANTED = 4_000_000_000  # bytes: the embedded default base, trained in bf16
_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "gguf", "pydantic", "typer")


@dataclass(frozen=True)
class Finding:
    """`ok` is False only for what stops a run; what merely makes it slower is said in `value`."""

    name: str
    ok: bool
    value: str
    fix: str = ""


def doctor(cache: Path = Path("artifacts/cache")) -> list[Finding]:
    """Look at everything; changes nothing and imports nothing heavy."""
    machine = hardware.detect()
    llama, built = _llama(cache)
    build_tools = [] if built else [_compiler(), _tool("cmake"), _tool("ninja")]
    return [
        _python(),
        _packages(),
        Finding("system", True, f"{machine.system.value}, {machine.cores.value} cores ({machine.cores.reason})"),
        _memory(machine.memory),
        _disk(cache),
        _accelerator(machine),
        *build_tools,
        llama,
    ]


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Finding("python", supported, f"{version} in {sys.prefix}", "use Python 3.11, 3.12 or 3.13")


def _packages() -> Finding:
    missing = []
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    fix = "remove .venv/.dm-forge-* and run again: the lock is installed anew"
    return Finding("packages", not missing, f"missing: {', '.join(missing)}" if missing else ", ".join(found), fix)


def _memory(memory: hardware.Fact[int]) -> Finding:
    enough = memory.value >= MEMORY_WANTED
    wanted = files.human_size(MEMORY_WANTED)
    return Finding(
        "memory", enough, f"{files.human_size(memory.value)}: {memory.reason}", f"{wanted} are needed at least"
    )


def _disk(cache: Path) -> Finding:
    folder = cache.resolve()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    fix = f"a first run takes up to {files.human_size(DISK_WANTED)}: free some space"
    return Finding("disk", free >= DISK_WANTED, f"{files.human_size(free)} free at {existing}", fix)


def _accelerator(machine: hardware.Hardware) -> Finding:
    if machine.cuda.value:
        memory = files.human_size(machine.cuda_memory.value)
        return Finding("device", True, f"{machine.cuda.value}, {memory}: {machine.cuda.reason}")
    if machine.metal.value:
        return Finding("device", True, f"Metal: {machine.metal.reason}")
    bf16 = "with" if machine.bf16.value else "without"
    return Finding("device", True, f"CPU {bf16} bf16 ({machine.bf16.reason}); {machine.cuda.reason}")


def _compiler() -> Finding:
    try:
        compiler = llama_build.find_compiler()
    except PipelineError as error:
        return Finding("compiler", False, error.what, error.fix or "")
    return Finding("compiler", True, f"{compiler.version}: {compiler.cxx}")


def _tool(name: str) -> Finding:
    try:
        return Finding(name, True, llama_build.find_tool(name))
    except PipelineError as error:
        return Finding(name, False, error.what, error.fix or "")


def _llama(cache: Path) -> tuple[Finding, bool]:
    """The finding, and whether a build is there: then nothing has to be compiled."""
    try:
        ready = llama_cpp.find(cache)
    except PipelineError as error:
        return Finding("llama.cpp", False, error.what, error.fix or ""), True
    if ready is None:
        return Finding("llama.cpp", True, "not built yet: the first run builds it, which takes minutes"), False
    return Finding("llama.cpp", True, f"commit {ready.commit[:10]}, built: {ready.binaries}"), True
