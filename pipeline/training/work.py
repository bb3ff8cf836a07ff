"""All that a training run will do, known before the model is loaded: every step, what is held out, and the run's key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import BaseModel, Dataset
from pipeline.config import TrainingConfig
from pipeline.data.dataset import read_conversations
from pipeline.errors import DataError
from pipeline.training import adapter, batches
from pipeline.training.batches import Family, Sample, Step

ENGINE = 6  # raise it when the same inputs no longer give the same adapter: old checkpoints are then not resumed


@dataclass(frozen=True)
class Work:
    """All that is to be done, known before the model is loaded."""

    steps: list[Step]
    held_out: list[Family]
    key: str

    @property
    def tokens(self) -> int:
        return sum(step.tokens for step in self.steps)


def plan_work(
    tokenizer: Any, dataset: Dataset, base: BaseModel, config: TrainingConfig, seed: int, start: Path | None = None
) -> Work:
    """Tokenise and lay out every step. Raises DataError for conversations that cannot be trained."""
    conversations = read_conversations(dataset.conversations)
    training = [conversation for conversation in conversations if conversation.split == "train"]
    development = [conversation for conversation in conversations if conversation.split == "dev"]
    if not training:
        raise DataError(
            "the dataset has no training conversations", where=str(dataset.conversations), fix="add scenarios"
        )
    samples = batches.encode(tokenizer, training, config)
    held_out = _limited(batches.encode(tokenizer, development, config), config.evaluation_tokens)
    settings = config.model_dump(mode="json")
    parent = [adapter.sha256_of(start)] if start else []
    key = files.sha256_json(
        [
            ENGINE,
            settings,
            seed,
            base.digest,
            [[s.id, s.ids, s.targets, s.shares, s.weight, s.group] for s in samples + held_out],
            *parent,
        ]
    )
    return Work(batches.steps(samples, config, seed), batches.families(held_out), key)


def _limited(samples: Sequence[Sample], tokens: int) -> list[Sample]:
    """A fixed selection of about so many tokens, spread over the whole list by the conversations' digests."""
    chosen, left = [], tokens
    for sample in sorted(samples, key=lambda sample: files.sha256_bytes(sample.id.encode())):
        if left <= 0:
            break
        chosen.append(sample)
        left -= len(sample.ids)
    return chosen
