"""The journey, top to bottom: every stage in order, skipping what is proven done.

    data → base → llama.cpp → preflight → training → export → parity → validation → promotion

Cheap checks come before dear work: the data is read before anything is fetched, and the untuned base goes through the
whole export before a single training step is made. Each stage has a key, the digest of everything it depends on; a
stage whose key is in the manifest, and whose outputs still have their digests, is skipped. Heavy libraries are
imported inside the stage that needs them, so that a run with nothing to do ends in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import files, shipping
from pipeline.artifacts import BaseModel, Dataset, LlamaCpp
from pipeline.environment import hardware
from pipeline.exporting import export, preflight, prove
from pipeline.journey import (
    Journey,
    Outcome,
    close_manifest,
    code_digest,
    describe,
    exclusive,
    llama_identity,
    machine_facts,
    split_digest,
    staged,
    summarise,
    timed,
)
from pipeline.learning import await_helpers, follow, require_parent, train_adapter
from pipeline.progress import Stage


def train(journey: Journey) -> Outcome:
    """From markdown to a promoted GGUF. Raises PipelineError; whatever is finished stays finished."""
    with exclusive(journey.config.output_dir):
        dataset, base, llama, baseline = learn(journey)
        kind = export(journey, dataset, base, llama)
        if journey.config.export.quantization == "auto":
            baseline = preflight(journey, dataset, base, llama, kind)
        prove(journey, dataset, base, llama)
        result = validate(journey, dataset, baseline, llama)
        report(journey, base, result)
        outcome = promote(journey, base, dataset, llama, result)
        summarise(journey, journey.run, result, outcome)
        journey.reporter.note(f"\n{shipping.how_to(outcome.model, outcome.mmproj, outcome.model)}")
        return outcome


def help_to_train(journey: Journey) -> None:
    """The whole journey of a machine that another one leads."""
    hardware.require_gpu()
    follow(journey, fetch_base)


def learn(journey: Journey) -> tuple[Dataset, BaseModel, LlamaCpp, Path]:
    """The journey up to the trained adapter."""
    hardware.require_gpu()
    await_helpers(journey)
    dataset, base = data(journey), fetch_base(journey)
    require_parent(journey, base)
    require_disk(journey, base)
    llama = build_llama(journey)
    baseline = preflight(journey, dataset, base, llama)
    shipping.require_runtime(journey.config.runtime, baseline)
    train_adapter(journey, dataset, base, llama)
    return dataset, base, llama, baseline


def data(journey: Journey) -> Dataset:
    """Read, check, split and compose the training data."""
    from pipeline.data.check import require_common_vocabulary

    require_common_vocabulary(journey.config.data.folder)
    run = journey.run
    key = files.sha256_json(
        [journey.config.data.model_dump(mode="json"), journey.config.seed, journey.inputs, code_digest("data")]
    )

    def work(stage: Stage) -> dict[str, Any]:
        from pipeline.data.build import build
        from pipeline.data.stats import differences, newest_report

        before = newest_report(journey.config.output_dir)
        old = files.read_json(before) if before else None
        made = build(journey.config.data, journey.config.seed, run.data, stage)
        report = files.read_json(made.report)
        facts = {"digest": made.digest, "conversations": report["splits"]}
        facts |= {table: report[table] for table in ("categories", "tools", "turns")}
        if before and old:
            facts["since"] = {"run": before.parents[1].name, "changes": differences(old, report)}
        return facts

    outputs = ("data/dataset.jsonl", "data/split.json", "data/report.json")
    facts = staged(journey, "data", key, outputs, work, str(journey.config.data.folder))
    return Dataset(run.data / "dataset.jsonl", run.data / "report.json", facts["digest"])


def fetch_base(journey: Journey) -> BaseModel:
    """The base checkpoint, verified; `auto` is resolved here and the reason is said."""
    from pipeline.bases import catalog, fetch

    config, name = journey.config, journey.config.base
    with timed(journey, "base", name) as stage:
        if name == "auto":
            name, reason = catalog.choose_default(catalog.with_reach(machine_facts()))
            stage.note(f"base {name}: {reason}")
        catalog.require_fits(name, config.export.quantization, shipping.largest_file(config, name))
        base = fetch.ensure(name, config.cache_dir, stage, config.accept_licences)
        stage.summary = f"{base.name}, {base.licence}"
    return base


def require_disk(journey: Journey, base: BaseModel) -> None:
    """Everything a run writes, counted from the base's own size, must fit before any of it is made."""
    weights = sum(path.stat().st_size for path in base.path.glob("*.safetensors"))
    llama_build = 1_500_000_000
    files.require_free_space(journey.run.folder, weights * 5 + llama_build, f"training {base.name} and exporting it")


def build_llama(journey: Journey) -> LlamaCpp:
    from pipeline.environment import llama_cpp

    with timed(journey, "llama.cpp", "") as stage:
        return llama_cpp.ensure(journey.config.cache_dir, stage, journey.llama_source)


def validate(journey: Journey, dataset: Dataset, baseline: Path, llama: LlamaCpp) -> dict[str, Any]:
    run, config = journey.run, journey.config.validation
    model = shipping.model(run)
    settings = config.model_dump(mode="json")
    proven = run.manifest()["stages"]["export"]["outputs"]
    rival, rival_digest = shipping.rival(journey.config.models_dir, run)
    code = code_digest(
        "validation", "statistics.py", "data/tools.py", "game.py", "llama_server.py", "integration/grammar.py"
    )
    test = split_digest(dataset, ("test",))
    key = files.sha256_json([proven, baseline.name, rival_digest, settings, test, llama_identity(llama), code])

    def work(stage: Stage) -> dict[str, Any]:
        from pipeline.data.dataset import read_conversations
        from pipeline.integration.grammar import for_messages
        from pipeline.validation.evaluate import validate as judge

        conversations = read_conversations(dataset.conversations)
        result = judge(
            model,
            baseline,
            conversations,
            llama,
            config,
            journey.threads,
            run.validation,
            stage,
            promoted=rival,
            exact=run.export / "model-f16.gguf",
            cache_dir=journey.config.cache_dir,
            grammar_of=lambda conversation: for_messages(conversation.messages),
        )
        tuned, untuned = (side["tool_call_accuracy"]["value"] for side in (result, result["baseline"]))
        stage.summary = f"tool-call accuracy {tuned:.3f}, untuned base {untuned:.3f}"
        return {"tool_call_accuracy": tuned, "baseline_tool_call_accuracy": untuned, "promoted_sha256": rival_digest}

    staged(
        journey,
        "validation",
        key,
        ("validation/validation.json", "validation/generations.jsonl"),
        work,
        "the shipped file plays held-out turns",
    )
    content: dict[str, Any] = files.read_json(run.validation / "validation.json")
    return content


def report(journey: Journey, base: BaseModel, result: dict[str, Any]) -> None:
    """The page for people, with the gate's word in it; written for a refused model too."""
    run, config = journey.run, journey.config
    gate = config.gate.model_dump(mode="json")
    key = files.sha256_json(
        [result, gate, config.export.model_dump(mode="json"), code_digest("validation", "shipping.py")]
    )

    def work(stage: Stage) -> dict[str, Any]:
        stage.summary = str(run.validation / "report.html")
        return {"reasons": shipping.report(run, config, base, result)}

    staged(journey, "report", key, shipping.REPORT, work, "a page for people")


def promote(journey: Journey, base: BaseModel, dataset: Dataset, llama: LlamaCpp, result: dict[str, Any]) -> Outcome:
    """Through the gate into the app's folder, then the manifest, last."""
    run = journey.run
    shipping.require_gate(run, journey.config, base, result)
    facts = describe(journey, base, llama)
    target, projector, shelf = shipping.ship(run, base, result, journey.config.models_dir, facts)
    promoted = {str(target): shelf["sha256"]}
    if projector:
        promoted[str(projector)] = shelf["mmproj"]["sha256"]
    close_manifest(journey, facts, promoted)
    return Outcome(target, projector, shipping.exported(run)["mmproj_reason"], shelf)


__all__ = [
    "Journey",
    "Outcome",
    "exclusive",
    "export",
    "help_to_train",
    "learn",
    "preflight",
    "prove",
    "train",
    "train_adapter",
]
