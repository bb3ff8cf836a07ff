"""How the work fits into this machine's memory, decided before anything dear begins.

The prediction adds up what autograd keeps of a row of tokens (see `_kept_per_token`), the weights, the adapter with its
optimiser, and one chunk of logits. It is compared with the measured peak in tests and in every run's plan.json.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import BaseModel
from pipeline.config import TrainingConfig
from pipeline.errors import BaseModelError, MachineError
from pipeline.language_model import TOWERS

_CPU_ROWS = (512, 256)  # longer rows gain a CPU nothing: products of 400 rows reach nine tenths of its matrix rate
_GPU_ROWS = (16384, 8192, 4096, 2048, 1024, 512)
_CHUNK = 128  # kernels.CHUNK; torch is not imported here, a test holds them equal
_SLACK = 1.1  # fragmentation of the allocator
_CODE = 1_200_000  # bytes that a run grows by for every shape of a product whose code oneDNN keeps: measured over runs
# of 1,200 to 1,500 steps, with the holes that are left around it; a step brings up to so many shapes:
_SHAPES_A_STEP = 60
_RATES = ((5e8, 2e-3), (2e9, 5e-4), (float("inf"), 2e-4))  # parameters below, peak learning rate of LoRA
_ROOM = 0.9  # share of the free memory that may be planned for


@dataclass(frozen=True)
class Shape:
    """A language model's sizes; `parameters` counts every tensor of the checkpoint but those of towers."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    kind: str
    parameters: int


@dataclass(frozen=True)
class Plan:
    """`row_tokens`: tokens that go through the model at once; `predicted_peak` and `available` in bytes;
    `keep_frozen`: whether what the frozen layers make of repeated families is kept (see frozen.py)."""

    method: str
    row_tokens: int
    recompute: bool
    predicted_peak: int
    available: int
    reason: str
    keep_frozen: bool = False


def make(
    base: BaseModel,
    config: TrainingConfig,
    *,
    device: str,
    width: int,
    longest: int,
    fullest: int,
    available: int,
    resident: int,
    steps: int,
    shards: int = 1,
    repeated: int = 0,
    compiled: bool = False,
) -> Plan:
    """The first plan that fits, from fast to frugal.

    device: cpu, cuda or mps; width: bytes of a weight; longest: tokens of the longest conversation; fullest: tokens of
    the largest step, more than which no row holds; available, resident: bytes free, and bytes this process holds
    already; steps: how many there are; shards: processes that divide weights and optimiser among them; repeated: tokens
    whose hidden states below the adapter recur; compiled: whether our kernels compute (see native.py). Raises
    MachineError if none fits.
    """
    if config.method == "qlora" and shards > 1:
        raise MachineError("QLoRA's weights cannot be divided", where="training.distributed: fsdp", fix="take ddp")
    shape = shape_of(base.path)
    if config.method != "full":  # below the tuned layers nothing is kept for a backward
        shape = replace(shape, layers=math.ceil(shape.layers * config.lora.depth))
    code = _CODE * min(_SHAPES_A_STEP * steps, int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]))
    held = resident + code * (device == "cpu")
    tried: list[str] = []
    for method, recompute, row in _options(config, device, longest, shards):
        size = 4 if method == "full" else width
        peak = held + predict(shape, method, config.lora.rank, size, min(row, fullest), recompute, shards, compiled)
        if peak <= (available + resident) * _ROOM:
            kept = repeated * shape.hidden * size if method == "lora" and device == "cpu" else 0
            keeps = kept > 0 and peak + kept <= (available + resident) * _ROOM
            peak += kept * keeps
            reason = _reason(method, row, recompute, peak, available, tried)
            return Plan(method, row, recompute, peak, available, reason, keeps)
        tried.append(f"{method} with rows of {row}{' and recomputing' if recompute else ''}: {files.human_size(peak)}")
    raise MachineError(
        f"{base.name} does not fit into the {files.human_size(available)} that are free:\n    "
        + "\n    ".join(tried[-3:]),
        where="training memory plan",
        fix="close other programs, take a smaller base, lower training.max_seq_length or training.lora.rank",
    )


def _options(config: TrainingConfig, device: str, longest: int, shards: int) -> Iterator[tuple[str, bool, int]]:
    methods = (
        [config.method]
        if config.method != "auto"
        else ["lora", *(["qlora"] if device == "cuda" and shards == 1 else [])]
    )
    rows = sorted({max(row, longest) for row in (_CPU_ROWS if device == "cpu" else _GPU_ROWS)}, reverse=True)
    for method in methods:
        for recompute in (False, True):
            for row in rows:
                yield method, recompute, row


def _reason(method: str, row: int, recompute: bool, peak: int, available: int, tried: list[str]) -> str:
    how = f"{method}, rows of {row} tokens{', activations recomputed' if recompute else ''}"
    text = f"{how}: {files.human_size(peak)} predicted, {files.human_size(available)} free"
    return f"{text}; not {tried[0]}" if tried else text


def predict(
    shape: Shape,
    method: str,
    rank: int,
    size: int,
    row_tokens: int,
    recompute: bool,
    shards: int = 1,
    compiled: bool = False,
) -> int:
    """Bytes that training adds to the process at its peak. `size` is the bytes of a weight."""
    weights = shape.parameters * (0.6 if method == "qlora" else size)
    tuned = shape.parameters if method == "full" else _adapter_parameters(shape, rank)
    optimiser = tuned * (12 if method == "full" else 16)  # gradient and two moments in fp32; an adapter itself as well
    layer = _kept_per_token(shape, rank, size, compiled and shape.kind == "llama")
    stack = layer + shape.layers * shape.hidden * size if recompute else layer * shape.layers
    passing = (4 * shape.intermediate + 8 * shape.hidden) * size  # gradients under way in one layer
    logits = _CHUNK * shape.vocabulary * (size if compiled else size + 3 * 4)
    return int(((weights + optimiser) / shards + row_tokens * (stack + passing) + logits) * _SLACK)


def _adapter_parameters(shape: Shape, rank: int) -> int:
    queries, keys = shape.heads * shape.head_width, shape.key_heads * shape.head_width
    attention = 2 * (shape.hidden + queries) + 2 * (shape.hidden + keys)
    return rank * shape.layers * (attention + 3 * (shape.hidden + shape.intermediate))


def _kept_per_token(shape: Shape, rank: int, size: int, fused: bool) -> int:
    """Bytes that one decoder layer keeps of a token until its backward."""
    queries, keys = shape.heads * shape.head_width, shape.key_heads * shape.head_width
    logs = 4 * shape.heads
    if fused:  # two inputs, what the products give, what attention gives
        return (2 * shape.hidden + 2 * queries + 2 * keys + 2 * shape.intermediate + 7 * rank) * size + logs
    norms = (4 if shape.kind.startswith("gemma") else 2) * shape.hidden * 4  # computed in fp32
    inputs = (2 * shape.hidden + queries + 7 * rank) * size  # what the LoRA layers read, and their low-rank products
    attention = (2 * queries + 2 * keys) * size + logs
    gate = 4 * shape.intermediate * size  # gate, activation, up, and their product
    return norms + inputs + attention + gate


def shape_of(folder: Path) -> Shape:
    """Read the sizes from a checkpoint's config.json and its safetensors' headers. Raises BaseModelError."""
    try:
        config = files.read_json(folder / "config.json")
        text = config.get("text_config", config)
        heads = int(text["num_attention_heads"])
        intermediate = text["intermediate_size"]
        return Shape(
            layers=int(text["num_hidden_layers"]),
            hidden=int(text["hidden_size"]),
            intermediate=max(intermediate) if isinstance(intermediate, list) else int(intermediate),
            heads=heads,
            key_heads=int(text.get("num_key_value_heads") or heads),
            head_width=int(text.get("head_dim") or text["hidden_size"] // heads),
            vocabulary=int(text["vocab_size"]),
            kind=str(text.get("model_type", "")),
            parameters=sum(_parameters(path) for path in folder.glob("*.safetensors")),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BaseModelError(
            f"the base's sizes cannot be read: {error!r}", where=str(folder), fix="fetch the base again"
        ) from error


def _parameters(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    count = 0
    for name, tensor in header.items():
        if name != "__metadata__" and not TOWERS.search(name):
            size = 1
            for dimension in tensor["shape"]:
                size *= dimension
            count += size
    return count


def pick_learning_rate(config: TrainingConfig, base: BaseModel) -> float:
    """The peak rate asked for, else one for the base's size: measured for SmolLM2-135M (docs/data.md), for larger ones
    what adapters are usually trained with; full fine-tuning takes a tenth."""
    if config.learning_rate is not None:
        return config.learning_rate
    parameters = shape_of(base.path).parameters
    rate = next(rate for limit, rate in _RATES if parameters < limit)
    return rate / 10 if config.method == "full" else rate


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of main memory a process may still take: what the machine has free, and what its cgroup still allows."""
    free = _machine_free(root)
    for limit, used in (
        ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        allowed, taken = _number(root / limit), _number(root / used)
        if allowed is not None:
            free = min(free, allowed - (taken or 0))
    return max(free, 0)


def _machine_free(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def resident_memory() -> int:
    """Bytes of main memory this process holds now (its peak where the system does not tell)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory()


def peak_memory() -> int:
    """The most main memory this process ever held, in bytes.

    Not by getrusage where the kernel tells of the address space itself: that starts at the peak of whoever started us.
    """
    import resource
    import sys

    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def remember(path: Path, key: str, plan: Plan) -> Plan:
    """The plan of an earlier start of the same run if there is one: other rows would sum gradients in another order
    and give other bytes."""
    if path.exists():
        earlier = files.read_json(path)
        if earlier.get("key") == key:
            return Plan(**earlier["plan"])
    files.write_json(path, {"key": key, "plan": asdict(plan)})
    return plan
