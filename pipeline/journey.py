"""What a run is made of: its settings, its folder, its lock, and stages that are skipped when proven done.

A stage has a key, the digest of everything it depends on: settings, inputs, code, versions. A stage whose key is in the
manifest, and whose outputs still have their digests, is skipped; so is one that another run did with the same key.
"""

from __future__ import annotations

import fcntl
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__, files, lineage
from pipeline.artifacts import BaseModel, Dataset, LlamaCpp, Run, StageRecord
from pipeline.config import Config
from pipeline.errors import MachineError
from pipeline.lineage import Parent
from pipeline.progress import Reporter, Stage, human_time
from pipeline.training.cluster import Cluster

if TYPE_CHECKING:
    from pipeline.bases.catalog import Facts

_CODE = Path(__file__).parent
# Code that a run's name covers.
_DECIDES = (
    *("data", "bases", "training", "environment/native", "export", "validation"),
    *("exporting.py", "gguf_file.py", "language_model.py", "statistics.py"),
)
_SOURCES = (".py", ".yaml", ".cpp", ".h", ".css", ".js", ".txt", ".json")  # CMakeLists.txt, package-lock.json
_PINNED = ("torch", "transformers", "trl", "peft", "accelerate", "safetensors", "tokenizers", "gguf", "numpy")


@dataclass
class Journey:
    """One run under way: settings, where things go, and what earlier stages have produced.

    `start` names the run whose adapter this one goes on from (`latest` is the promoted one); `cluster` is who trains, and
    `store` where its processes meet.
    """

    config: Config
    reporter: Reporter
    threads: int
    llama_source: Path | None = None
    cluster: Cluster = field(default_factory=Cluster)
    start: str | None = None
    store: Any = None
    timings: list[tuple[str, float, str]] = field(default_factory=list)

    @cached_property
    def inputs(self) -> str:
        """Digest of the data folder and everything else that the dataset depends on."""
        from pipeline.data.build import inputs_digest

        return inputs_digest(self.config.data)

    @cached_property
    def code(self) -> str:
        """Digest of the code that decides the outputs, as the run found it: an edit meanwhile is not this run's."""
        return code_digest(*_DECIDES)

    @cached_property
    def parent(self) -> Parent | None:
        """What this run goes on from. Where the latest run was made of the same inputs, this is that run once more."""
        if self.start is None:
            return None
        found = lineage.find(self.config, self.start)
        before = lineage.parent_of(self.config, found.run_id)
        return before if self._name(before) == found.run_id else found

    @cached_property
    def run(self) -> Run:
        run = Run(self.config.output_dir / self._name(self.parent))
        run.folder.mkdir(parents=True, exist_ok=True)
        return run

    def _name(self, parent: Parent | None) -> str:
        settings = self.config.model_dump(
            mode="json", exclude={"output_dir", "cache_dir", "models_dir", "gate", "runtime", "accept_licences"}
        )
        more: list[Any] = [self.cluster.size] if self.cluster.size > 1 else []
        more += [parent.adapter_sha256] if parent else []
        identity = files.sha256_json([settings, self.inputs, self.code, versions(), self.threads, *more])
        return f"{self.config.preset}-{identity[:10]}"


@dataclass(frozen=True)
class Outcome:
    """What a finished run hands to the user."""

    model: Path
    mmproj: Path | None
    mmproj_reason: str
    metadata: dict[str, Any]


def llama_identity(llama: LlamaCpp) -> list[Any]:
    return [llama.commit, list(llama.build_flags)]


@contextmanager
def timed(journey: Journey, name: str, what: str) -> Iterator[Stage]:
    started = time.monotonic()
    with journey.reporter.stage(name, what) as stage:
        yield stage
    journey.timings.append((name, time.monotonic() - started, ""))


def staged(
    journey: Journey,
    name: str,
    key: str,
    outputs: tuple[str, ...] | Callable[[dict[str, Any]], tuple[str, ...]],
    work: Callable[[Stage], dict[str, Any]],
    what: str,
) -> dict[str, Any]:
    """Do a stage unless it is proven done here or in another run; returns its facts.

    `outputs` are paths in the run's folder, or what tells them from the facts where the work decides.
    """
    run = journey.run
    record = run.finished(name, key)
    reason = "nothing it depends on has changed"
    if record is None:
        record = run.adopt(name, key, journey.config.output_dir)
        reason = "taken over from an earlier run with the same inputs"
    if record is not None:
        journey.reporter.skipped(name, reason)
        journey.timings.append((name, record.seconds, "skipped"))
        return record.facts
    started = time.monotonic()
    with timed(journey, name, what) as stage:
        facts = work(stage)
    made = outputs(facts) if callable(outputs) else outputs
    digests = {output: files.sha256_file(run.folder / output) for output in made}
    run.record(name, StageRecord(key, digests, time.monotonic() - started, facts))
    return facts


def code_digest(*parts: str) -> str:
    """Digest of the source of stages or files: what a stage makes depends on its code too."""
    found: list[Path] = []
    for part in parts:
        path = _CODE / part
        found += [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in _SOURCES]
    return files.sha256_json(files.sha256_files(found, _CODE))


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _PINNED}


def split_digest(dataset: Dataset, splits: tuple[str, ...]) -> str:
    """Digest of one part of the dataset, so that editing a held-out scenario does not retrain."""
    from pipeline.data.build import part_key

    report = files.read_json(dataset.report)
    return files.sha256_json([report[part_key(split)] for split in splits])


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Two runs in one checkout would write over each other's files: the second is told so."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MachineError(
                "another run is at work in this checkout",
                where=str(folder),
                fix="wait for it to end, or give --output-dir",
            ) from error
        yield


def describe(journey: Journey, base: BaseModel | None = None, llama: LlamaCpp | None = None) -> dict[str, Any]:
    """What the run rests on: settings, digests of its inputs, versions and machine; base and llama.cpp where given."""
    origin = {"base": {"name": base.name, "digest": base.digest, "origin": base.origin}} if base else {}
    tools = {"llama_cpp": {"commit": llama.commit, "build_flags": list(llama.build_flags)}} if llama else {}
    return {
        "config": journey.config.model_dump(mode="json"),
        "inputs": {"data": journey.inputs} | origin,
        "code": journey.code,
        "versions": versions() | {"dm-forge": __version__, "python": platform.python_version()},
        "processes": journey.cluster.size,
        "lineage": journey.parent.facts() if journey.parent else None,
        "host": host() | {"threads": journey.threads},
    } | tools


def host() -> dict[str, Any]:
    """What of the machine may change a result's last bits."""
    from pipeline.environment import hardware

    device = hardware.cuda()[0].value or ("Apple Metal" if hardware.metal().value else "CPU")
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": hardware.cpu_model(),
        "device": device,
    }


def close_manifest(journey: Journey, facts: dict[str, Any], promoted: dict[str, str]) -> None:
    """Write down what the run rests on and what was promoted; an unchanged manifest is left as it is."""
    manifest = journey.run.manifest() | facts | {"promoted": promoted, "exit": 0}
    if manifest != journey.run.manifest():
        journey.run.write_manifest(manifest)


def machine_facts() -> Facts:
    """What choosing a base rests on: the device that training would use, and its memory."""
    from pipeline.bases.catalog import Facts
    from pipeline.environment import hardware

    found = hardware.detect()
    if found.cuda.value:
        return Facts("cuda", found.cuda.value, found.cuda_memory.value)
    if found.metal.value:
        return Facts("metal", "Apple Metal", found.memory.value)
    return Facts("cpu", f"the CPU ({found.cores.value} cores)", found.memory.value)


def summarise(journey: Journey, run: Run, result: dict[str, Any], outcome: Outcome) -> None:
    note = journey.reporter.note
    note("")
    note(
        f"model      {outcome.model} ({outcome.metadata['quantization_level']}, {outcome.metadata['file_size_mb']} MB, "
        f"sha256 {outcome.metadata['sha256'][:16]}…)"
    )
    for label, side in (("accuracy", result), ("untuned", result["baseline"])):
        figure = side["tool_call_accuracy"]
        note(
            f"{label:<10} {figure['value']:.3f} of {figure['turns']} held-out DM turns (95 %: {figure['low']:.3f}–{figure['high']:.3f})"
        )
    note(f"stages     {', '.join(f'{name} {how or human_time(seconds)}' for name, seconds, how in journey.timings)}")
    note(f"run        {run.folder}")
    note(f"report     {run.validation / 'report.html'}")
    note(f"mmproj     {outcome.mmproj or 'none'}: {outcome.mmproj_reason}")
