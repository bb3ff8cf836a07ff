"""From conversations to optimiser steps: a pure function of the data, the config and the seed.

Whole conversations are the unit: nothing is cut, and a row is filled up by a few tokens at most. A step is an
effective batch of conversations; a micro-batch lays some of them end to end in one row, and attention keeps each to
itself (see attention.py). What several conversations of a family have in common at their beginning is computed once.
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

# Rows are as long as a multiple of this, and as many of their tokens predict. oneDNN generates code for every shape it
# meets and keeps it: with a length of its own for each row, time and memory grew with every step (docs/performance.md).
ROW_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation as tokens. `targets` are the positions whose token is trained (never position 0), `shares` how
    much each of them counts in the loss, `weight` how often the conversation is drawn."""

    id: str
    ids: tuple[int, ...]
    targets: tuple[int, ...]
    shares: tuple[float, ...]
    weight: float = 1.0
    group: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """Conversations whose first `stem` tokens are the same; one alone has no stem. Its stem is trained once."""

    samples: tuple[Sample, ...]
    stem: int = 0

    @property
    def layout(self) -> tuple[int, ...]:
        """Tokens of the stem, then of what each conversation adds; of one alone, all its tokens."""
        rest = tuple(len(sample.ids) - self.stem for sample in self.samples)
        return (self.stem, *rest) if self.stem else rest

    @property
    def tokens(self) -> int:
        return sum(self.layout)

    @property
    def weight(self) -> float:
        return sum(sample.weight for sample in self.samples) / len(self.samples)

    def targets(self) -> Iterator[tuple[int, int, float]]:
        """For every trained token: the place in the family's row that predicts it, the token, its share."""
        start = self.stem
        for number, sample in enumerate(self.samples):
            for target, share in zip(sample.targets, sample.shares, strict=True):
                if target >= self.stem or number == 0:
                    place = target - 1 if target <= self.stem else start + target - 1 - self.stem
                    yield place, sample.ids[target], share
            start += len(sample.ids) - self.stem


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step. `number` counts from 1; a family stands in it twice if its weight asks for it."""

    number: int
    families: tuple[Family, ...]

    @property
    def tokens(self) -> int:
        return sum(family.tokens for family in self.families)

    @property
    def supervised_tokens(self) -> int:
        return sum(1 for family in self.families for _ in family.targets())

    @property
    def shares(self) -> float:
        """What the step's summed loss is divided by."""
        return sum(share for family in self.families for _, _, share in family.targets())

    @property
    def names(self) -> list[str]:
        return sorted({sample.id for family in self.families for sample in family.samples})


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Families end to end in one row.

    input_ids, position_ids: [1, tokens]; layouts: each family's layout, and that of what fills the row up; predictors:
    [targets] the row positions whose next token is trained; labels: [targets] those tokens; shares: [targets] fp32, how
    much each counts.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    layouts: tuple[tuple[int, ...], ...]
    predictors: torch.Tensor
    labels: torch.Tensor
    shares: torch.Tensor

    def to(self, device: torch.device) -> MicroBatch:
        tensors = (self.input_ids, self.position_ids, self.predictors, self.labels, self.shares)
        ids, positions, predictors, labels, shares = (tensor.to(device) for tensor in tensors)
        return MicroBatch(ids, positions, self.layouts, predictors, labels, shares)


def encode(tokenizer: Any, conversations: Sequence[Conversation], config: TrainingConfig) -> list[Sample]:
    """Tokenise with the base's own template. Raises DataError that lists every conversation that cannot be trained."""
    samples, faults = [], []
    for conversation in conversations:
        try:
            rendered = chat.render(tokenizer, conversation.messages)
        except DataError as error:
            faults.append(f"{conversation.source}:{conversation.line}: {error.what}")
            continue
        trained = rendered.decisive if conversation.call_only else rendered.supervised
        targets = tuple(index for index, wanted in enumerate(trained) if wanted and index)
        fault = _fault(len(rendered.ids), len(targets), config.max_seq_length)
        if fault:
            faults.append(f"{conversation.source}:{conversation.line}: {fault}")
        shares = tuple(config.call_weight if rendered.decisive[target] else 1.0 for target in targets)
        samples.append(Sample(conversation.id, rendered.ids, targets, shares, conversation.weight, conversation.group))
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


def families(samples: Sequence[Sample]) -> list[Family]:
    """Samples of one group together, in the order in which the groups first occur."""
    groups: dict[str, list[Sample]] = {}
    for number, sample in enumerate(samples):
        groups.setdefault(sample.group or f"\0{number}", []).append(sample)
    return [Family(tuple(members), _stem(members)) for members in groups.values()]


def _stem(samples: Sequence[Sample]) -> int:
    if len(samples) == 1:
        return 0
    first, last = min(sample.ids for sample in samples), max(sample.ids for sample in samples)
    common = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return min(common, *(len(sample.ids) - 1 for sample in samples))


def epoch_order(drawn: Sequence[Family], seed: int, epoch: int) -> list[Family]:
    """An epoch's families, shuffled: a pure function of (families, seed, epoch).

    A weight of 1.6 puts a family in once, and once more in 60 % of the epochs.
    """
    chance = random.Random(f"dm-forge/{seed}/{epoch}")  # noqa: S311  an order, not a secret
    order = []
    for family in drawn:
        whole, rest = divmod(family.weight, 1.0)
        order += [family] * (int(whole) + (chance.random() < rest))
    chance.shuffle(order)
    return order


def steps(samples: Sequence[Sample], config: TrainingConfig, seed: int) -> list[Step]:
    """Every step of the run in order, so that schedules know their end and a resumed run its place."""
    batches: list[list[Family]] = [[]]
    for family in _stream(families(samples), config, seed):
        if batches[-1] and _full(batches[-1], family, config):
            batches.append([])
        batches[-1].append(family)
    if not batches[0]:
        raise TrainingError(
            "there is nothing to train on: no conversation is drawn",
            fix="add training conversations, or raise their weights, training.epochs or training.max_tokens",
        )
    return [Step(number, tuple(batch)) for number, batch in enumerate(batches, start=1)]


def _stream(drawn: Sequence[Family], config: TrainingConfig, seed: int) -> Iterator[Family]:
    whole, rest = divmod(config.epochs, 1.0)
    left = config.max_tokens if config.max_tokens is not None else float("inf")
    for epoch in range(int(whole) + (rest > 0)):
        order = epoch_order(drawn, seed, epoch)
        if epoch == int(whole):
            order = order[: max(1, round(len(order) * rest))]
        for family in order:
            if left <= 0:
                return
            left -= family.tokens
            yield family


def _full(batch: list[Family], coming: Family, config: TrainingConfig) -> bool:
    if config.batch_size is not None:
        return sum(len(family.samples) for family in batch) >= config.batch_size
    return sum(family.tokens for family in batch) + coming.tokens > config.batch_tokens


def pack(drawn: Sequence[Family], limit: int) -> list[list[Family]]:
    """Families into rows of at most `limit` tokens, first fit from the longest down; a longer one goes alone."""
    rows: list[list[Family]] = []
    free: list[int] = []
    for family in sorted(drawn, key=lambda family: -family.tokens):
        place = next((index for index, room in enumerate(free) if room >= family.tokens), None)
        if place is None:
            rows.append([])
            free.append(limit)
            place = len(rows) - 1
        rows[place].append(family)
        free[place] -= family.tokens
    return rows


def padded(tokens: int) -> int:
    """The length of the row that holds so many tokens."""
    return -(-tokens // ROW_MULTIPLE) * ROW_MULTIPLE


def micro_batch(drawn: Sequence[Family]) -> MicroBatch:
    """The families' row, filled up by a conversation of its own that nothing is learnt from, and by targets that do not
    count."""
    import torch

    ids: list[int] = []
    positions: list[int] = []
    targets: list[tuple[int, int, float]] = []
    for family in drawn:
        targets += [(len(ids) + place, token, share) for place, token, share in family.targets()]
        ids += family.samples[0].ids[: family.stem]
        positions += range(family.stem)
        for sample in family.samples:
            ids += sample.ids[family.stem :]
            positions += range(family.stem, len(sample.ids))
    layouts = [family.layout for family in drawn]
    if filling := padded(len(ids)) - len(ids):
        layouts.append((filling,))
        ids += ids[:1] * filling
        positions += range(filling)
    targets += [(0, ids[0], 0.0)] * (padded(len(targets)) - len(targets))
    predictors, labels, shares = zip(*targets, strict=True)
    return MicroBatch(
        torch.tensor([ids]),
        torch.tensor([positions]),
        tuple(layouts),
        torch.tensor(predictors),
        torch.tensor(labels),
        torch.tensor(shares, dtype=torch.float32),
    )
