"""Start the processes that train together, watch them, and say which one failed.

This process keeps to the watching: it shows rank 0's progress, survives any rank's death, and ends the others then.
Where torchrun or accelerate started the ranks, their agent does the watching and each process works itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch.distributed as dist

from pipeline import errors
from pipeline.artifacts import Adapter
from pipeline.errors import MachineError, PipelineError, TrainingError
from pipeline.progress import Stage
from pipeline.training import interrupt
from pipeline.training.cluster import Cluster
from pipeline.training.distributed import place_of
from pipeline.training.rank import Task, child, work

_LIMIT = 6 * 3600.0  # seconds a helping machine waits: the first one may have to build and fetch before it trains
_GRACE = 5.0  # seconds in which a dying rank is noticed, so that the blame is not put on those who lost it
_AGAIN = "run the same command again: training goes on from the last checkpoint"


def host_store(cluster: Cluster) -> Any:
    """The leading process's store, where all others will come; it listens on the cluster's address alone."""
    if cluster.hosted:
        return _visit(cluster)
    listener = socket.socket(socket.AF_INET6 if ":" in cluster.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((cluster.host, cluster.port))
    except OSError as error:
        raise MachineError(
            f"{cluster.host}:{cluster.port} cannot be listened on: {error.strerror}",
            where="--rendezvous",
            fix="take another port",
        ) from error
    listener.listen()
    port = listener.getsockname()[1]
    return dist.TCPStore(cluster.host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def _visit(cluster: Cluster, limit: float = _LIMIT) -> Any:
    """A helper's way to the store, once it is there."""
    end = time.monotonic() + limit
    while True:
        try:
            socket.create_connection((cluster.host, cluster.port), 2).close()
            return dist.TCPStore(cluster.host, cluster.port, is_master=False, timeout=timedelta(seconds=60))
        except OSError as error:
            if time.monotonic() > end:
                raise MachineError(
                    f"nobody answers at {cluster.host}:{cluster.port}",
                    where="--rendezvous",
                    fix="start the same command on the machine that has this address",
                ) from error
            time.sleep(1)


def await_start(cluster: Cluster) -> Any:
    """On a machine that only helps: the store once training begins, or None when there is nothing to train."""
    store = _visit(cluster)
    try:
        while not store.check(["start"]):
            time.sleep(0.5)
        if store.get("start") == b"train":
            return store
        store.add("dismissed", 1)
    except RuntimeError as error:  # torch's DistError is one
        raise TrainingError("the first machine has gone before training began", where="--rendezvous") from error
    return None


def dismiss(cluster: Cluster, store: Any) -> None:
    """Tell the helpers that there is nothing to train."""
    store.set("start", "nothing")
    helpers = cluster.size - 1 if cluster.rank is not None else cluster.machines - 1
    end = time.monotonic() + 60
    while store.add("dismissed", 0) < helpers and time.monotonic() < end:
        time.sleep(0.2)


def train(cluster: Cluster, task: Task, stage: Stage, store: Any = None) -> Adapter:
    """The leading machine's part: all of its ranks, and rank 0's adapter. Raises what a rank raised."""
    store = store or host_store(cluster)
    store.set("start", "train")
    adapter = _take_part(cluster, 0, task, stage, store)
    if adapter is None:
        raise TrainingError("rank 0 ended without an adapter", fix=_AGAIN)
    return adapter


def follow(cluster: Cluster, task: Task, stage: Stage, store: Any) -> None:
    """A helping machine's part."""
    machine = 0 if cluster.rank is not None else store.add("machines", 1)
    if machine >= cluster.machines:
        raise MachineError(f"this is machine {machine + 1} of {cluster.machines}", fix="raise --nnodes everywhere")
    _take_part(cluster, machine, task, stage, store)


def _take_part(cluster: Cluster, machine: int, task: Task, stage: Stage, store: Any) -> Adapter | None:
    if cluster.rank is None:
        return Crew(cluster, machine, task, store).watch(stage)
    place = place_of(cluster, cluster.rank // cluster.processes, cluster.local_rank, cluster.port)
    try:
        return work(place, task, stage, store=store)
    except RuntimeError as error:
        raise TrainingError(
            f"rank {cluster.rank} failed: {error}", fix=f"see the other ranks' words above; {_AGAIN}"
        ) from error


@dataclass
class Member:
    """A rank of this machine, and what it has said."""

    rank: int
    process: Any
    pipe: Connection
    words: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return self.process.exitcode not in (None, 0)

    def listen(self, stage: Stage) -> None:
        try:
            while self.pipe.poll():
                kind, *values = self.pipe.recv()
                if kind == "update":
                    stage.update(*values[0], **values[1])
                elif kind == "note":
                    stage.note(*values)
                else:
                    self.words[kind] = tuple(values)
        except EOFError:
            return


class Crew:
    """This machine's ranks, each in a process of its own."""

    def __init__(self, cluster: Cluster, machine: int, task: Task, store: Any) -> None:
        self._store, self._size = store, cluster.size
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._members: list[Member] = []
        for local_rank in range(cluster.processes):
            place = place_of(cluster, machine, local_rank, store.port)
            own = (
                task if place.rank == 0 else Task(task.base, task.config, task.seed, task.threads, kernels=task.kernels)
            )
            ours, theirs = context.Pipe(False)
            process = context.Process(
                target=child, args=(place, own, theirs, self._stop, os.getpid()), name=f"rank {place.rank}", daemon=True
            )
            process.start()
            theirs.close()
            self._members.append(Member(place.rank, process, ours))

    def watch(self, stage: Stage) -> Adapter | None:
        """Until all have ended. Raises KeyboardInterrupt, or the error of the rank that failed first."""
        try:
            with interrupt.deferred() as asked:
                self._listen(stage, asked)
                failed = any(member.failed for member in self._members)
                if asked() or any("interrupted" in member.words for member in self._members):
                    raise KeyboardInterrupt
                if failed:
                    self._settle(stage)
                    raise self._blame()
            return next((member.words["done"][0] for member in self._members if member.rank == 0), None)
        finally:
            for member in self._members:
                if member.process.is_alive():
                    member.process.kill()
                member.process.join()

    def _listen(self, stage: Stage, asked: Any) -> None:
        while True:
            alive = [member for member in self._members if member.process.is_alive()]
            for member in self._members:
                member.listen(stage)
            if not alive or any(member.failed for member in self._members):
                return
            if asked():
                self._stop.set()
            wait([thing for member in alive for thing in (member.pipe, member.process.sentinel)], timeout=0.5)

    def _settle(self, stage: Stage) -> None:
        end = time.monotonic() + _GRACE
        while time.monotonic() < end and any(member.process.is_alive() for member in self._members):
            time.sleep(0.1)
        for member in self._members:
            member.listen(stage)

    def _blame(self) -> PipelineError:
        """The cause rather than its consequences: a killed rank, a known failure, another machine's word, a crash."""
        for member in self._members:
            if (member.process.exitcode or 0) < 0:
                name = signal.Signals(-member.process.exitcode).name
                hint = "; SIGKILL often means that memory ran out: use fewer processes or a smaller base"
                return self._told(
                    TrainingError(
                        f"rank {member.rank} of {self._size} was killed by {name}",
                        where="training",
                        fix=_AGAIN + (hint if name == "SIGKILL" else ""),
                    )
                )
        for member in self._members:
            if "fault" in member.words:
                kind, what, where, fix = member.words["fault"]
                error: PipelineError = getattr(errors, kind)(what, where=where, fix=fix)
                return self._told(error)
        return self._others_word() or self._told(self._crash())

    def _others_word(self) -> PipelineError | None:
        try:
            if self._store.check(["fault"]):
                return TrainingError(f"on another machine: {self._store.get('fault').decode()}", fix=_AGAIN)
        except RuntimeError:
            return TrainingError("the first machine has gone", where="--rendezvous", fix=f"on every machine, {_AGAIN}")
        return None

    def _crash(self) -> PipelineError:
        member = next(member for member in self._members if member.failed)
        text = member.words.get("crash", (f"it ended with exit code {member.process.exitcode}",))[0]
        return TrainingError(f"rank {member.rank} of {self._size} failed:\n{text.rstrip()}", fix=_AGAIN)

    def _told(self, error: PipelineError) -> PipelineError:
        """Let the other machines know, too."""
        try:
            self._store.set("fault", error.what)
        except RuntimeError:
            return error  # the first machine has gone, and its own words say why
        return error
