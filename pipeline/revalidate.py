"""`train:validate`: is the training data sound, and is the newest promoted model still what it was?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import Run
from pipeline.config import Config, ValidationConfig
from pipeline.errors import ValidationError
from pipeline.integration.store import METADATA
from pipeline.progress import Reporter


def revalidate(config: Config, reporter: Reporter, threads: int) -> None:
    """Check the corpus, then the promoted file's bytes, then how it plays a few held-out turns now."""
    with reporter.stage("data", str(config.data.folder)) as stage:
        from pipeline.data.check import load_corpus

        corpus = load_corpus(config.data.folder)
        lines = sum(len(section.drills) for file in corpus.drills for section in file.sections)
        stage.summary = f"{len(corpus.scenarios)} scenarios and {lines} drill lines without errors"
    metadata = newest_model(config.models_dir)
    model = config.models_dir / f"{metadata['model_name']}.gguf"
    with reporter.stage("bytes", str(model)) as stage:
        require_same_bytes(model, metadata)
        stage.summary = f"sha256 {metadata['sha256'][:16]}… as promoted"
    play(config, metadata, model, reporter, threads)


def newest_model(models_dir: Path) -> dict[str, Any]:
    """The promoted model's metadata. Raises ValidationError when nothing has been promoted yet."""
    if not (models_dir / METADATA).is_file():
        raise ValidationError(
            "no model has been promoted yet", where=str(models_dir / METADATA), fix="run `pnpm run train` first"
        )
    metadata: dict[str, Any] = files.read_json(models_dir / METADATA)
    return metadata


def require_same_bytes(model: Path, metadata: dict[str, Any]) -> None:
    found = files.sha256_file(model) if model.is_file() else "missing"
    if found != metadata["sha256"]:
        raise ValidationError(
            f"the promoted model is {found[:16]}, its metadata says {metadata['sha256'][:16]}",
            where=str(model),
            fix="run `pnpm run train` again: it puts the proven file back",
        )


def play(config: Config, metadata: dict[str, Any], model: Path, reporter: Reporter, threads: int) -> None:
    """Play held-out conversations of the model's own run with the shipped file."""
    from pipeline.data.dataset import read_conversations
    from pipeline.environment import llama_cpp
    from pipeline.validation.evaluate import held_out, measure

    run = Run(config.output_dir / metadata["run_id"])
    dataset = run.data / "dataset.jsonl"
    if not dataset.is_file():
        raise ValidationError(
            "the run that made this model is gone", where=str(run.folder), fix="run `pnpm run train` again"
        )
    as_then = ValidationConfig.model_validate(run.manifest()["config"]["validation"])
    with reporter.stage("llama.cpp") as stage:
        llama = llama_cpp.ensure(config.cache_dir, stage)
    with reporter.stage("play", "held-out turns, again") as stage:
        chosen = held_out(read_conversations(dataset), as_then.conversations)
        result, _ = measure(model, chosen, llama, as_then, threads, stage, "the promoted model")
        accuracy = result["tool_call_accuracy"]["value"]
        stage.summary = f"tool-call accuracy {accuracy:.3f}, {metadata['tool_call_accuracy']:.3f} when promoted"
