"""Who trains together: so many processes on so many machines, and where they meet. Nothing heavy is imported here."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import UsageError


@dataclass(frozen=True)
class Cluster:
    """`processes` a machine; `host`, `port`: the first machine's address where there are several machines.

    `rank` is set where torchrun or accelerate started this process: it then is one of the `size` ranks itself.
    """

    processes: int = 1
    machines: int = 1
    host: str = "127.0.0.1"
    port: int = 0
    rank: int | None = None
    local_rank: int = 0
    hosted: bool = False  # torchrun's agent keeps the meeting place
    leads: bool = True  # does everything but training too; the others only help to train

    @property
    def size(self) -> int:
        return self.processes * self.machines


def gather(processes: int, machines: int, rendezvous: str | None, environment: Mapping[str, str]) -> Cluster:
    """What the flags, or the variables that torchrun and accelerate set, ask for. Raises UsageError."""
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        if processes > 1 or machines > 1 or rendezvous:
            raise UsageError(
                f"torchrun has started {environment['WORLD_SIZE']} processes already",
                where="--nproc, --nnodes, --rendezvous",
                fix="leave these flags out, or start without torchrun",
            )
        return _launched(environment)
    if not 1 <= processes <= 1024 or not 1 <= machines <= 1024:
        raise UsageError(f"--nproc {processes} --nnodes {machines} is no cluster", fix="give numbers from 1 to 1024")
    if (machines > 1) != bool(rendezvous):
        raise UsageError(
            f"--nnodes {machines} {'needs a meeting place' if machines > 1 else 'needs no meeting place'}",
            where="--nnodes, --rendezvous",
            fix="give both: --nnodes 2 --rendezvous FIRST-MACHINE:29400, the same on every machine",
        )
    if not rendezvous:
        return Cluster(processes)
    host, port = _address(rendezvous)
    return Cluster(processes, machines, host, port, leads=is_own_address(host))


def _launched(environment: Mapping[str, str]) -> Cluster:
    size, rank = int(environment["WORLD_SIZE"]), int(environment["RANK"])
    local = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if size % local:
        raise UsageError(f"{size} processes do not divide into machines of {local}", where="torchrun")
    return Cluster(
        local,
        size // local,
        environment["MASTER_ADDR"],
        int(environment["MASTER_PORT"]),
        rank,
        int(environment.get("LOCAL_RANK", "0")),
        environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        leads=rank == 0,
    )


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--rendezvous {text!r} is no address", where="--rendezvous", fix="write host:port")
    return host.strip("[]"), int(port)


def is_own_address(host: str) -> bool:
    """Whether the name is this machine's: only an own address can be bound."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
        except OSError:
            continue
        return True
    return False


def interface_towards(host: str, port: int) -> str | None:
    """The network interface through which `host` is reached: gloo and NCCL would guess it from the machine's name."""
    import psutil

    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port or 1))
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            return name
    return None
