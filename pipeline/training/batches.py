"""From conversations to optimiser steps: a pure function of the data, the config and the seed.

Whole conversations are the unit: nothing is cut, nothing is padded. A step is an effective batch of conversations; a
micro-batch lays some of them end to end in one row, and attention keeps each to itself (see attention.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config import TrainingConfig
from pipeline.data import chat
from pipeline.data.dataset import Conversation
from pipeline.errors import DataError, TrainingError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation as tokens. `targets` are the positions whose token is trained (never position 0)."""

    id: str
    ids: tuple[int, ...]
    targets: tuple[int, ...]
    weight: float = 1.0

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step. `number` counts from 1; `samples` may hold a conversation twice if its weight asks for it."""

    number: int
    samples: tuple[Sample, ...]

    @property
    def tokens(self) -> int:
        return sum(sample.tokens for sample in self.samples)

    @property
    def targets(self) -> int:
        return sum(len(sample.targets) for sample in self.samples)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Conversations end to end in one row.

    input_ids, position_ids: [1, tokens]; lengths: tokens of each conversation; predictors: [targets] the row positions
    whose next token is trained; labels: [targets] those tokens.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    lengths: tuple[int, ...]
    predictors: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> MicroBatch:
        moved = [tensor.to(device) for tensor in (self.input_ids, self.position_ids, self.predictors, self.labels)]
        return MicroBatch(moved[0], moved[1], self.lengths, moved[2], moved[3])


def encode(tokenizer: Any, conversations: Sequence[Conversation], max_length: int) -> list[Sample]:
    """Tokenise with the base's own template. Raises DataError that lists every conversation that cannot be trained."""
    samples, faults = [], []
    for conversation in conversations:
        try:
            rendered = chat.render(tokenizer, conversation.messages)
        except DataError as error:
            faults.append(f"{conversation.source}:{conversation.line}: {error.what}")
            continue
        targets = tuple(index for index, wanted in enumerate(rendered.supervised) if wanted and index)
        fault = _fault(len(rendered.ids), len(targets), max_length)
        if fault:
            faults.append(f"{conversation.source}:{conversation.line}: {fault}")
        samples.append(Sample(conversation.id, rendered.ids, targets, conversation.weight))
    if faults:
        raise DataError(
            f"{len(faults)} of {len(conversations)} conversations cannot be trained:\n    "
            + "\n    ".join(faults[:20]),
            fix="mend or shorten them, or raise training.max_seq_length (more memory)",
        )
    return samples


def _fault(tokens: int, targets: int, max_length: int) -> str:
    if tokens > max_length:
        return f"{tokens} tokens are more than training.max_seq_length = {max_length}"
    if not 0 < targets < tokens - 1:
        return f"{targets} of {tokens} tokens would carry loss; some must, and some must not"
    return ""


def epoch_order(samples: Sequence[Sample], seed: int, epoch: int) -> list[Sample]:
    """An epoch's conversations, shuffled: a pure function of (samples, seed, epoch).

    A weight of 1.6 puts a conversation in once, and once more in 60 % of the epochs.
    """
    chance = random.Random(f"dm-forge/{seed}/{epoch}")  # noqa: S311  an order, not a secret
    drawn = []
    for sample in samples:
        whole, rest = divmod(sample.weight, 1.0)
        drawn += [sample] * (int(whole) + (chance.random() < rest))
    chance.shuffle(drawn)
    return drawn


def steps(samples: Sequence[Sample], config: TrainingConfig, seed: int) -> list[Step]:
    """Every step of the run in order, so that schedules know their end and a resumed run its place."""
    batches: list[list[Sample]] = [[]]
    for sample in _stream(samples, config, seed):
        if batches[-1] and _full(batches[-1], sample, config):
            batches.append([])
        batches[-1].append(sample)
    if not batches[0]:
        raise TrainingError(
            "there is nothing to train on: no conversation is drawn",
            fix="add training conversations, or raise their weights, training.epochs or training.max_tokens",
        )
    return [Step(number, tuple(batch)) for number, batch in enumerate(batches, start=1)]


def _stream(samples: Sequence[Sample], config: TrainingConfig, seed: int) -> Iterator[Sample]:
    whole, rest = divmod(config.epochs, 1.0)
    left = config.max_tokens if config.max_tokens is not None else float("inf")
    for epoch in range(int(whole) + (rest > 0)):
        order = epoch_order(samples, seed, epoch)
        if epoch == int(whole):
            order = order[: max(1, round(len(order) * rest))]
        for sample in order:
            if left <= 0:
                return
            left -= sample.tokens
            yield sample


def _full(batch: list[Sample], coming: Sample, config: TrainingConfig) -> bool:
    if config.batch_size is not None:
        return len(batch) >= config.batch_size
    return sum(sample.tokens for sample in batch) + coming.tokens > config.batch_tokens


def pack(samples: Sequence[Sample], limit: int) -> list[list[Sample]]:
    """Conversations into rows of at most `limit` tokens, first fit from the longest down; a longer one goes alone."""
    rows: list[list[Sample]] = []
    free: list[int] = []
    for sample in sorted(samples, key=lambda sample: -sample.tokens):
        place = next((index for index, room in enumerate(free) if room >= sample.tokens), None)
        if place is None:
            rows.append([])
            free.append(limit)
            place = len(rows) - 1
        rows[place].append(sample)
        free[place] -= sample.tokens
    return rows


def micro_batch(samples: Sequence[Sample]) -> MicroBatch:
    import torch

    ids: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    labels: list[int] = []
    for sample in samples:
        start = len(ids)
        ids += sample.ids
        positions += range(sample.tokens)
        predictors += [start + target - 1 for target in sample.targets]
        labels += [sample.ids[target] for target in sample.targets]
    return MicroBatch(
        torch.tensor([ids]),
        torch.tensor([positions]),
        tuple(sample.tokens for sample in samples),
        torch.tensor(predictors),
        torch.tensor(labels),
    )
