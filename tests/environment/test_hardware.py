"""Limits are read from a small file system of the test's own: cgroups, affinity and CPU flags are files."""

import os
from pathlib import Path

from pipeline.environment import hardware


def test_a_cgroup_v2_quota_limits_the_cores_and_says_so(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self/cgroup", "0::/box\n")
    _write(tmp_path / "sys/fs/cgroup/box/cpu.max", "100000 100000\n")
    if (os.cpu_count() or 1) > 1:
        cores = hardware.cores(tmp_path)
        assert cores.value == 1
        assert "quota is 1 of" in cores.reason


def test_a_fraction_of_a_core_counts_as_one(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self/cgroup", "0::/\n")
    _write(tmp_path / "sys/fs/cgroup/cpu.max", "50000 100000\n")
    assert hardware.cores(tmp_path).value == 1


def test_an_outer_cgroup_limits_an_inner_one(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self/cgroup", "0::/outer/inner\n")
    _write(tmp_path / "sys/fs/cgroup/outer/memory.max", "1000000\n")
    _write(tmp_path / "sys/fs/cgroup/outer/inner/memory.max", "max\n")
    memory = hardware.memory(tmp_path)
    assert memory.value == 1_000_000
    assert "cgroup" in memory.reason


def test_cgroup_v1_is_read_too(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self/cgroup", "4:memory:/box\n1:cpu,cpuacct:/box\n")
    _write(tmp_path / "sys/fs/cgroup/memory/box/memory.limit_in_bytes", "2000000\n")
    assert hardware.memory(tmp_path).value == 2_000_000


def test_no_limit_leaves_the_whole_machine(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self/cgroup", "0::/\n")
    _write(tmp_path / "sys/fs/cgroup/cpu.max", "max 100000\n")
    _write(tmp_path / "sys/fs/cgroup/memory.max", "max\n")
    assert "machine" in hardware.memory(tmp_path).reason
    assert hardware.cores(tmp_path).value >= 1


def test_bf16_is_read_from_the_flags(tmp_path: Path) -> None:
    _write(tmp_path / "proc/cpuinfo", "model name\t: Tiny\nflags\t\t: sse2 avx512_bf16\n")
    assert hardware.bf16(tmp_path) == hardware.Fact(True, "/proc/cpuinfo lists avx512_bf16")
    _write(tmp_path / "proc/cpuinfo", "model name\t: Tiny\nflags\t\t: sse2 bf16x\n")
    assert not hardware.bf16(tmp_path).value


def test_two_cpus_of_one_name_with_other_flags_are_told_apart(tmp_path: Path) -> None:
    _write(tmp_path / "proc/cpuinfo", "model name\t: Tiny\nflags\t\t: sse2 avx\n")
    first = hardware.cpu_model(tmp_path)
    _write(tmp_path / "proc/cpuinfo", "model name\t: Tiny\nflags\t\t: sse2\n")
    assert hardware.cpu_model(tmp_path) != first


def test_every_fact_has_a_reason() -> None:
    machine = hardware.detect()
    assert all(fact.reason for fact in vars(machine).values())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
