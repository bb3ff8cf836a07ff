"""The training stage of the journey: alone or with other processes, from the base or from an earlier run's adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import lineage
from pipeline.artifacts import Adapter, BaseModel, Dataset, LlamaCpp
from pipeline.files import sha256_json
from pipeline.journey import Journey, code_digest, split_digest, staged, timed, versions
from pipeline.progress import Stage

# Code that decides what is trained on, and how.
_CODE = (
    *("training", "environment/native", "language_model.py"),
    *("data/chat.py", "data/dataset.py", "data/tools.py"),
)


def require_parent(journey: Journey, base: BaseModel) -> None:
    """Before the dear work: the adapter to go on from is there and fits. Raises UsageError."""
    if journey.parent:
        lineage.require_fit(journey.config, journey.parent, base)
        journey.reporter.note(f"going on from the adapter of run {journey.parent.run_id}")


def await_helpers(journey: Journey) -> None:
    """Before anything dear: other machines find this one, wait at it, and notice when it fails before training begins."""
    if journey.cluster.size > 1:
        from pipeline.training import launch

        journey.store = launch.host_store(journey.cluster)


def train_adapter(journey: Journey, dataset: Dataset, base: BaseModel, llama: LlamaCpp) -> None:
    config, cluster, parent = journey.config.training, journey.cluster, journey.parent
    learnt = split_digest(dataset, ("train", "dev"))
    code = code_digest(*_CODE)
    inputs = [config.model_dump(mode="json"), journey.config.seed, journey.threads, learnt, base.digest]
    inputs += [code, versions(), bool(llama.kernels)]
    inputs += ["processes", cluster.size] if cluster.size > 1 else []
    inputs += ["parent", parent.adapter_sha256] if parent else []
    key = sha256_json(inputs)
    trained = []

    def work(stage: Stage) -> dict[str, Any]:
        trained.append(True)
        made = _fit(journey, dataset, base, llama.kernels, stage)
        stage.summary = f"{made.steps} steps, {made.tokens:,} tokens, held-out loss {made.held_out_loss:.3f}"
        facts = {"adapter_sha256": made.sha256, "steps": made.steps, "tokens": made.tokens}
        facts |= {"final_loss": made.final_loss, "held_out_loss": made.held_out_loss}
        return facts | ({"parent": parent.facts()} if parent else {})

    def outputs(_: dict[str, Any]) -> tuple[str, ...]:
        adapter = sorted((journey.run.training / "adapter").iterdir())  # full fine-tuning leaves no adapter_config.json
        return ("training/metrics.jsonl", *(f"training/adapter/{path.name}" for path in adapter))

    how = "every weight of its layers" if config.method == "full" else f"LoRA rank {config.lora.rank}"
    staged(journey, "training", key, outputs, work, f"{base.name}, {how}")
    if cluster.size > 1 and not trained:
        from pipeline.training import launch

        launch.dismiss(cluster, journey.store)


def _fit(journey: Journey, dataset: Dataset, base: BaseModel, kernels: Path | None, stage: Stage) -> Adapter:
    config, cluster, out = journey.config, journey.cluster, journey.run.training
    start = journey.parent.adapter(config) if journey.parent else None
    if cluster.size > 1:
        from pipeline.training import launch
        from pipeline.training.rank import Task

        task = Task(base, config.training, config.seed, _threads(journey), dataset, out, start, kernels)
        return launch.train(cluster, task, stage, journey.store)
    from pipeline.training.loop import train

    return train(
        dataset,
        base,
        config.training,
        seed=config.seed,
        threads=journey.threads,
        out=out,
        stage=stage,
        start=start,
        kernels=kernels,
    )


def follow(journey: Journey, fetch: Callable[[Journey], BaseModel]) -> None:
    """A machine (or a rank of torchrun's) that only helps: wait for the first one, then train until it is done."""
    from pipeline.environment import llama_cpp
    from pipeline.training import launch
    from pipeline.training.rank import Task

    cluster = journey.cluster
    with timed(journey, "waiting", f"for training to begin at {cluster.host}:{cluster.port}") as stage:
        store = launch.await_start(cluster)
        if store is None:
            stage.summary = "there is nothing to train"
            return
    base = fetch(journey)
    llama = llama_cpp.find(journey.config.cache_dir)
    task = Task(
        base,
        journey.config.training,
        journey.config.seed,
        _threads(journey),
        kernels=llama.kernels if llama else None,
    )
    with timed(journey, "training", f"{base.name}, as a helper") as stage:
        launch.follow(cluster, task, stage, store)
        stage.summary = f"done; everything else happens at {cluster.host}"


def _threads(journey: Journey) -> int:
    return max(1, journey.threads // journey.cluster.processes)
