"""The run's middle: the untuned base through the whole export, then the trained model, then the proof.

What is exported depends on everything that the key of a stage names; `--quant auto` decides by dev conversations, so
that the held-out ones stay unseen by whatever is chosen.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipeline import files, shipping
from pipeline.artifacts import BaseModel, Dataset, LlamaCpp
from pipeline.export.quantize import KINDS, takes_matrix
from pipeline.journey import Journey, code_digest, llama_identity, split_digest, staged, timed
from pipeline.progress import Stage

_CODE = (
    "export",
    "exporting.py",
    "gguf_file.py",
    "language_model.py",
    "llama_server.py",
    "data/chat.py",
    "data/dataset.py",
)
_F16, _MATRIX, _MMPROJ = "model-f16.gguf", "imatrix.gguf", "mmproj-f16.gguf"


def preflight(journey: Journey, dataset: Dataset, base: BaseModel, llama: LlamaCpp, kind: str | None = None) -> Path:
    """Take the untuned base through the whole export: proof that the road exists, and the baseline.

    It is quantised just as the trained model will be, importance matrix included, so that comparing them is fair. Where
    `auto` has yet to choose, the smallest kind stands in.
    """
    config, largest = journey.config.export, shipping.largest_file(journey.config, base.name)
    kind = kind or (KINDS[0] if config.quantization == "auto" else config.quantization)
    matrix = _matrix_inputs(journey, dataset, kind)
    identity = files.sha256_json([base.digest, llama_identity(llama), kind, matrix, code_digest(*_CODE)])[:12]
    path = journey.config.cache_dir / "baselines" / f"{base.name}-{kind}-{identity}.gguf"
    if path.is_file() and path.stat().st_size <= largest:
        journey.reporter.skipped("preflight", "this base has gone through this llama.cpp before")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with timed(journey, "preflight", "the untuned base through conversion and quantisation") as stage:
        from pipeline.export import mmproj
        from pipeline.export.convert import convert
        from pipeline.export.quantize import quantize

        metadata = {"general.name": base.name, "general.basename": base.name}
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as name:
            folder = Path(name)
            f16, made = folder / _F16, folder / "model.gguf"
            convert(base.path, f16, llama, metadata)
            used = _matrix(journey, dataset, base.path, f16, llama, kind)
            quantize(f16, made, kind, llama, journey.threads, largest, used)
            _, told = mmproj.export(base.path, made, folder / _MMPROJ, llama, metadata, journey.threads)
            made.replace(path)
        size = files.human_size(path.stat().st_size)
        stage.summary = f"{base.name} becomes {size} at {kind}" + (f"; {told}" if base.multimodal else "")
    return path


def export(journey: Journey, dataset: Dataset, base: BaseModel, llama: LlamaCpp) -> str:
    """Merge, convert, quantise, and the projector where the base reads images; returns the kind that is shipped."""
    run, config = journey.run, journey.config.export
    adapter = run.manifest()["stages"]["training"]["facts"]["adapter_sha256"]
    key = files.sha256_json(
        [
            [
                config.quantization,
                shipping.largest_file(journey.config, base.name),
                _matrix_inputs(journey, dataset, config.quantization),
            ],
            _choice_inputs(journey, dataset),
            [adapter, base.digest, llama_identity(llama), run.run_id],
            code_digest(*_CODE),
        ]
    )

    def work(stage: Stage) -> dict[str, Any]:
        return _export(journey, dataset, base, llama, stage)

    def outputs(facts: dict[str, Any]) -> tuple[str, ...]:
        return tuple(f"export/{name}" for name in facts["files"])

    facts = staged(journey, "export", key, outputs, work, f"merge, convert, quantise to {config.quantization}")
    return str(facts["quantization"])


def _export(journey: Journey, dataset: Dataset, base: BaseModel, llama: LlamaCpp, stage: Stage) -> dict[str, Any]:
    from pipeline.export import mmproj
    from pipeline.export.convert import convert
    from pipeline.export.merge import merge

    out, merged = journey.run.export, journey.run.export / "merged"
    metadata = shipping.gguf_metadata(journey.run, base, dataset)
    stage.update(0, 4, "merging")
    changed = merge(base.path, journey.run.training / "adapter", merged)
    stage.update(1, 4, "converting")
    convert(merged, out / _F16, llama, metadata)
    stage.update(2, 4, "quantising")
    matrix = _matrix(journey, dataset, merged, out / _F16, llama, journey.config.export.quantization)
    largest = shipping.largest_file(journey.config, base.name)
    kind, choice = _quantise(journey, dataset, merged, llama, matrix, largest, stage)
    model = out / f"model-{kind}.gguf"
    stage.update(3, 4, "projector")
    projector, told = mmproj.export(merged, model, out / _MMPROJ, llama, metadata, journey.threads)
    made = [out / _F16, model, *(path for path in (matrix, projector) if path)]
    stage.summary = f"{changed} tensors merged, {kind} file of {files.human_size(model.stat().st_size)}"
    return {
        "quantization": kind,
        "sha256": files.sha256_file(model),
        "bytes": model.stat().st_size,
        "tensors_merged": changed,
        "imatrix_chunks": journey.config.export.imatrix_chunks if matrix and takes_matrix(kind) else 0,
        "mmproj": projector.name if projector else None,
        "mmproj_reason": told,
        "choice": choice,
        "files": [path.name for path in made],
    }


def _quantise(
    journey: Journey,
    dataset: Dataset,
    merged: Path,
    llama: LlamaCpp,
    matrix: Path | None,
    largest: float,
    stage: Stage,
) -> tuple[str, dict[str, Any] | None]:
    """Quantise as asked, or choose; returns the kind, and every candidate's figures where there was a choice.

    The figures go into the manifest and into no file: speed differs from run to run, and what is made must not.
    """
    from pipeline.export import choose, parity
    from pipeline.export.quantize import quantize

    config, out = journey.config.export, journey.run.export
    f16 = out / _F16
    if config.quantization != "auto":
        model = out / f"model-{config.quantization}.gguf"
        quantize(f16, model, config.quantization, llama, journey.threads, largest, matrix)
        return config.quantization, None
    found = choose.choose(
        f16,
        out,
        parity.sequences(merged, dataset, config.parity.conversations, "dev"),
        llama,
        config.parity,
        threads=journey.threads,
        max_bytes=largest,
        margin=config.auto.margin,
        score=lambda model: _hits(journey, dataset, llama, model, stage),
        imatrix=matrix,
    )
    stage.note(f"{found.kind} chosen: {found.reason}")
    return found.kind, found.report()


def _hits(journey: Journey, dataset: Dataset, llama: LlamaCpp, model: Path, stage: Stage) -> list[tuple[str, float]]:
    """Its conversation and 1 for each dev turn whose tool calls are the gold ones, else 0; always the same turns in the same order."""
    from pipeline.data.dataset import read_conversations
    from pipeline.validation.evaluate import fair_share, judge_all
    from pipeline.validation.play import play
    from pipeline.validation.servers import serve_apart

    settings = journey.config.validation
    conversations = [item for item in read_conversations(dataset.conversations) if item.split == "dev"]
    chosen = fair_share(conversations, journey.config.export.auto.conversations)
    with serve_apart(llama, model, threads=journey.threads, most=settings.slots, context=settings.context) as servers:
        replies = play(
            servers,
            chosen,
            max_tokens=settings.max_reply_tokens,
            on_turn=lambda done, total: stage.update(done, total, f"dev turns of {model.stem}"),
        )
    return [(judged.conversation, float(judged.hit)) for judged in judge_all(replies, chosen)]


def _matrix(journey: Journey, dataset: Dataset, checkpoint: Path, f16: Path, llama: LlamaCpp, kind: str) -> Path | None:
    """The importance matrix beside `f16`, where the kind has a use for one and the config wants one."""
    from pipeline.export import importance

    chunks = journey.config.export.imatrix_chunks
    if not chunks or not takes_matrix(kind):
        return None
    out = f16.with_name(_MATRIX)
    importance.compute(f16, dataset, checkpoint, out, llama, journey.threads, chunks)
    return out


def _matrix_inputs(journey: Journey, dataset: Dataset, kind: str) -> list[Any]:
    chunks = journey.config.export.imatrix_chunks
    if not chunks or not takes_matrix(kind):
        return []
    return [chunks, split_digest(dataset, ("train",)), journey.threads]


def _choice_inputs(journey: Journey, dataset: Dataset) -> list[Any]:
    config, play = journey.config.export, journey.config.validation
    if config.quantization != "auto":
        return []
    return [
        [config.auto.model_dump(mode="json"), config.parity.model_dump(mode="json")],
        [play.slots, play.context, play.max_reply_tokens],
        split_digest(dataset, ("dev",)),
        code_digest("validation", "statistics.py", "data/tools.py", "game.py"),
    ]


def prove(journey: Journey, dataset: Dataset, base: BaseModel, llama: LlamaCpp) -> None:
    """Compare the trained model with the files made from it; outside the bounds nothing is promoted."""
    run, config = journey.run, journey.config.export
    exported = run.manifest()["stages"]["export"]["outputs"]
    bounds = config.parity.model_dump(mode="json")
    key = files.sha256_json([exported, bounds, split_digest(dataset, ("test",)), code_digest(*_CODE)])

    def work(stage: Stage) -> dict[str, Any]:
        from pipeline.export import parity

        merged, quantised = run.export / "merged", shipping.model(run)
        sequences = parity.sequences(merged, dataset, config.parity.conversations)
        report = parity.prove(merged, run.export / _F16, quantised, sequences, llama, config.parity, journey.threads)
        files.write_json(run.export / "parity.json", report)
        files.remove(merged)  # proven; it can be made again from base and adapter
        f16, quant = report["f16_against_trained"], report["quantised_against_f16"]
        stage.summary = (
            f"KL {f16['mean_kl']:.1e} to f16, {quant['mean_kl']:.1e} to {shipping.quantisation(run)}; "
            f"top-1 {f16['top1']:.3f}, {quant['top1']:.3f}"
        )
        return {"f16_mean_kl": f16["mean_kl"], "quant_mean_kl": quant["mean_kl"], "quant_top1": quant["top1"]}

    if not (run.export / "merged").is_dir() and run.finished("parity", key) is None:
        from pipeline.export.merge import merge

        merge(base.path, run.training / "adapter", run.export / "merged")
    staged(journey, "parity", key, ("export/parity.json",), work, "the file against the trained model")
