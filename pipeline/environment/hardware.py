"""What this machine has: every value comes with the reason for it, and nothing heavy is imported to find out."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pipeline.errors import MachineError

Value = TypeVar("Value")
_UNLIMITED = 1 << 60  # cgroup v1 writes about 2^63 for "no limit"


@dataclass(frozen=True)
class Fact(Generic[Value]):
    value: Value
    reason: str


@dataclass(frozen=True)
class Hardware:
    """`memory` is in bytes; `cuda` is the first GPU's name and `cuda_memory` its bytes, or None and 0."""

    system: Fact[str]
    cores: Fact[int]
    memory: Fact[int]
    bf16: Fact[bool]
    cuda: Fact[str | None]
    cuda_memory: Fact[int]
    metal: Fact[bool]


def detect(root: Path = Path("/")) -> Hardware:
    """Everything at once. `root` is the file system to look at (tests give a small one)."""
    name, gpu_memory = cuda(root)
    return Hardware(
        system=Fact(f"{platform.system()} {platform.machine()}", "as the kernel reports it"),
        cores=cores(root),
        memory=memory(root),
        bf16=bf16(root),
        cuda=name,
        cuda_memory=gpu_memory,
        metal=metal(),
    )


def cores(root: Path = Path("/")) -> Fact[int]:
    """CPU cores this process may use: the machine's, its affinity mask and its cgroup's quota, whichever is least."""
    count = os.cpu_count() or 1
    found = Fact(count, f"the machine has {count}")
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
        if allowed < found.value:
            found = Fact(allowed, f"the affinity mask allows {allowed} of {count}")
    quota = _cpu_quota(root)
    if quota is not None and max(1, int(quota)) < found.value:
        found = Fact(max(1, int(quota)), f"the cgroup's CPU quota is {quota:g} of {count} cores")
    return found


def memory(root: Path = Path("/")) -> Fact[int]:
    """Bytes of main memory this process may use: the machine's or its cgroup's limit, whichever is less."""
    total = _physical_memory()
    limits = [
        text for path in _cgroup_files(root, "memory.max", "memory", "memory.limit_in_bytes") if (text := _read(path))
    ]
    limit = min((int(text) for text in limits if text.isdigit()), default=_UNLIMITED)
    if limit < min(total, _UNLIMITED):
        return Fact(limit, f"the cgroup allows {limit / 1e9:.1f} of {total / 1e9:.1f} GB")
    return Fact(total, f"the machine has {total / 1e9:.1f} GB")


def bf16(root: Path = Path("/")) -> Fact[bool]:
    """Whether the CPU multiplies bfloat16 in hardware."""
    if platform.system() == "Darwin":
        return Fact(_command(["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]) == "1", "sysctl hw.optional.arm.FEAT_BF16")
    flags = cpu_flags(root)
    for flag in ("amx_bf16", "avx512_bf16", "bf16"):
        if flag in flags:
            return Fact(True, f"/proc/cpuinfo lists {flag}")
    return Fact(False, "/proc/cpuinfo lists none of amx_bf16, avx512_bf16, bf16")


def cuda(root: Path = Path("/")) -> tuple[Fact[str | None], Fact[int]]:
    """The first NVIDIA GPU's name and its memory in bytes; none where the user keeps this process from it."""
    if kept := cpu_on_purpose():
        return Fact(None, kept), Fact(0, kept)
    answer = _command(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"])
    if answer:
        name, _, mebibytes = answer.splitlines()[0].rpartition(",")
        size = int(mebibytes) * (1 << 20) if mebibytes.strip().isdigit() else 0
        return Fact(name.strip(), "nvidia-smi lists it"), Fact(size, "nvidia-smi reports it")
    if (root / "proc/driver/nvidia/version").exists():
        reason = "the NVIDIA driver is loaded but nvidia-smi does not list a GPU"
    else:
        reason = "nvidia-smi is not there or lists no GPU, and no NVIDIA driver is loaded"
    return Fact(None, reason), Fact(0, reason)


def cpu_on_purpose() -> str | None:
    """The setting by which the user leaves a GPU alone, if there is one."""
    if os.environ.get("DM_FORGE_DEVICE") == "cpu":
        return "DM_FORGE_DEVICE=cpu leaves a GPU alone"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every GPU"
    return None


def nvidia_smi() -> str:
    """The first GPU and its driver's version, in nvidia-smi's words."""
    return "".join(
        _command(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]).splitlines()[:1]
    )


def require_gpu() -> None:
    """A GPU that nvidia-smi lists must be one that PyTorch reaches: else a base chosen for it would be trained on the
    CPU. torch is imported only where there is one. Raises MachineError."""
    if not cuda()[0].value:
        return
    import torch

    if torch.cuda.is_available():
        return
    built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
    raise MachineError(
        f"PyTorch does not reach this machine's GPU: nvidia-smi lists {nvidia_smi()}, "
        f"and torch {torch.__version__} {built}",
        where="torch.cuda.is_available() is False",
        fix="PyTorch for CUDA 13 wants driver 580 or newer and a GPU of compute capability 7.5 or newer: update the driver, "
        "then remove .venv and run again; or train on the CPU on purpose with DM_FORGE_DEVICE=cpu",
    )


def metal() -> Fact[bool]:
    """Whether this is Apple silicon, whose GPU PyTorch reaches as `mps` and llama.cpp as Metal."""
    if platform.system() != "Darwin":
        return Fact(False, f"{platform.system()} is not macOS")
    if platform.machine() == "arm64":
        return Fact(True, "macOS on Apple silicon")
    translated = _command(["sysctl", "-n", "sysctl.proc_translated"]) == "1"
    return Fact(
        False, "this Python runs under Rosetta: use an arm64 one" if translated else "an Intel Mac has no Apple GPU"
    )


def cpu_model(root: Path = Path("/")) -> str:
    """The CPU's name with its instruction sets: code built natively runs only on an equal one."""
    if platform.system() == "Darwin":
        return _command(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.machine()
    names = [_after_colon(line) for line in _cpuinfo(root) if line.startswith(("model name", "CPU part"))]
    return f"{names[0] if names else platform.machine()} {' '.join(sorted(cpu_flags(root)))}"


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    for line in _cpuinfo(root):
        if line.startswith(("flags", "Features")):
            return frozenset(_after_colon(line).split())
    return frozenset()


def _cpuinfo(root: Path) -> list[str]:
    return _read(root / "proc/cpuinfo").splitlines()


def _after_colon(line: str) -> str:
    return line.partition(":")[2].strip()


def _cpu_quota(root: Path) -> float | None:
    """The tightest CPU quota, in cores, from this process's cgroup upwards; None when there is none."""
    quotas = []
    for path in _cgroup_files(root, "cpu.max", "cpu", "cpu.cfs_quota_us"):
        words = _read(path).split()
        if path.name == "cpu.cfs_quota_us":
            words.append(_read(path.with_name("cpu.cfs_period_us")))
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _cgroup_files(root: Path, modern: str, controller: str, legacy: str) -> list[Path]:
    """Where a limit may stand: cgroup v2's file or v1's, in this process's group and in every group above it."""
    places: list[Path] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            mount, name = root / "sys/fs/cgroup", modern
        elif controller in controllers.split(","):
            mount, name = root / "sys/fs/cgroup" / controller, legacy
        else:
            continue
        inner = mount / group.lstrip("/")
        places += [folder / name for folder in (inner, *inner.parents) if folder == mount or mount in folder.parents]
    return [place for place in places if place.is_file()]


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _command(arguments: list[str]) -> str:
    try:
        answer = subprocess.run(arguments, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
