"""One run's training, computed by several processes: each takes a share of every step's conversations.

The gradient is that of the whole step, divided by all its supervised tokens, so the loss curve is the one that a single
process draws. DDP copies the model into every process; FSDP divides it among them. Files are rank 0's alone: the others
are sent what they need, so machines need no disk in common.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.errors import MachineError, TrainingError
from pipeline.training import adapter, batches, interrupt, objective, shards
from pipeline.training.batches import Family, Sample
from pipeline.training.cluster import Cluster, interface_towards
from pipeline.training.trainer import OPTIMIZER, SCHEDULER, ForgeTrainer

_PATIENCE = datetime.timedelta(minutes=30)  # the slowest may load a large base from a slow disk


@dataclass(frozen=True)
class Place:
    """One process's place among the others, and the store (torch's TCPStore at host:port) where they meet."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int


def place_of(cluster: Cluster, machine: int, local_rank: int, port: int) -> Place:
    rank = machine * cluster.processes + local_rank
    return Place(rank, cluster.size, local_rank, cluster.processes, cluster.host, port)


@contextmanager
def joined(place: Place, threads: int, store: Any = None) -> Iterator[None]:
    """Be one of the processes; gloo on a CPU, NCCL on GPUs."""
    os.environ |= {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_size),
        "MASTER_ADDR": place.host,
        "MASTER_PORT": str(place.port),
        "OMP_NUM_THREADS": str(threads),  # accelerate sets a number of its own where this is not said
    }
    interface = interface_towards(place.host, place.port)
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    backend = _backend(place)
    store = store or dist.TCPStore(place.host, place.port, is_master=False, timeout=_PATIENCE)
    group = dist.PrefixStore("ranks", store)
    dist.init_process_group(backend, store=group, rank=place.rank, world_size=place.size, timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _backend(place: Place) -> str:
    device = adapter.pick_device()
    if device.type == "mps":
        raise MachineError("Metal trains with one process", where="--nproc", fix="leave --nproc out")
    if device.type != "cuda":
        return "gloo"
    if place.local_size > torch.cuda.device_count():
        raise MachineError(
            f"{place.local_size} processes want a GPU each, and there are {torch.cuda.device_count()}",
            where="--nproc",
            fix=f"give --nproc {torch.cuda.device_count()}",
        )
    torch.cuda.set_device(place.local_rank)
    return "cpu:gloo,cuda:nccl"


def size() -> int:
    """How many processes train; 1 outside of `joined`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if size() > 1 else 0


def local_size() -> int:
    return int(os.environ["LOCAL_WORLD_SIZE"]) if size() > 1 else 1


def agree(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def bring(folder: Path | None, here: Path) -> Path | None:
    """Rank 0's folder, where every rank can read it: itself on rank 0, a copy at `here` on the others."""
    content = None
    if rank() == 0 and folder is not None:
        paths = [path for path in folder.rglob("*") if path.is_file()]
        content = {str(path.relative_to(folder)): path.read_bytes() for path in paths} if size() > 1 else {}
    content = agree(content)
    if content is None or rank() == 0:
        return folder
    for name, data in content.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(data)
    return here


def divide(drawn: Sequence[Family], count: int) -> list[list[Family]]:
    """Families of conversations divided among so many processes: longest first, each to whoever has the fewest tokens."""
    parts: list[list[Family]] = [[] for _ in range(count)]
    load = [0] * count
    for family in sorted(drawn, key=lambda family: -family.tokens):
        place = load.index(min(load))
        parts[place].append(family)
        load[place] += family.tokens
    return parts


def rows_of(drawn: Sequence[Family], limit: int, place: int, count: int) -> list[tuple[Sequence[Family], int]]:
    """This process's rows with their weights, and rows that weigh nothing until all processes have equally many.

    The last row always weighs nothing: all work is done, and out of memory survived, before processes wait for each
    other in its backward.
    """
    packed = [batches.pack(part, limit) for part in divide(drawn, count)]
    longest = max(len(rows) for rows in packed) + 1
    first = drawn[0].samples[0]
    idle = [Family((Sample(first.id, first.ids[:2], (1,), (1.0,)),))]
    mine: list[tuple[Sequence[Family], int]] = [(row, count) for row in packed[place]]  # DDP and FSDP take the mean
    return mine + [(idle, 0)] * (longest - len(mine))


class CrewTrainer(ForgeTrainer):
    """One of several processes' trainers. Whatever one of them decides, all decide alike."""

    @property
    def sharded(self) -> bool:
        """FSDP: this process holds a part of each weight."""
        return any(hasattr(parameter, "full_tensor") for parameter in self.model.parameters())

    def training_step(self, model: Any, step: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        asked = torch.tensor(float(self.session.interrupted()))
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        if asked:
            raise interrupt.BetweenRows
        return super().training_step(model, step, num_items_in_batch)

    def _obey_interrupt(self) -> None:
        """Only between steps, where all processes can stop together."""

    def _rows(self, drawn: Sequence[Family]) -> list[tuple[Sequence[Family], int]]:
        return rows_of(drawn, self._row_tokens, rank(), size())

    def _mean(self, value: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(value)
        return value / size()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _held_out(self) -> float:
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        for row, weight in self._rows(self.session.held_out):
            total += objective.row_loss(self.model, batches.micro_batch(row).to(self.args.device)) * weight
        self.model.train()
        return float(self._mean(total)) / sum(
            share for family in self.session.held_out for _, _, share in family.targets()
        )

    def _halve_rows(self, step: Any, error: BaseException) -> None:
        if self.sharded:
            raise TrainingError(
                f"rank {rank()} ran out of memory with rows of {self._row_tokens} tokens",
                where=f"step {step.number}",
                fix="use more processes, lower training.max_seq_length or training.lora.rank, or take a smaller base",
            ) from error
        super()._halve_rows(step, error)

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, grad_norm: Any, *rest: Any, **named: Any) -> None:
        super()._maybe_log_save_evaluate(tr_loss, shards.whole(grad_norm), *rest, **named)

    def _write_checkpoint(self, weights: dict[str, torch.Tensor], optimizer: dict[str, Any]) -> None:
        optimizer = shards.whole(optimizer)
        if rank() == 0:
            super()._write_checkpoint(weights, optimizer)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for index, moments in state["state"].items():
            pattern = parameters[index]
            for name, value in moments.items():
                moments[name] = shards.like(value, pattern) if value.shape == pattern.shape else value
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))
