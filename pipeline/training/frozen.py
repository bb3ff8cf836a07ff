"""What the frozen layers below the adapter make of a family: computed once, however many epochs train on it.

With `training.lora.depth` below 1 nothing under the first tuned layer ever changes, so a family's hidden states there
are the same in every epoch. They are computed for each family by itself: then they depend neither on what shares its
row nor on whether a resumed run has them yet, and the adapter's bytes stay the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.training import batches
from pipeline.training.batches import Family, Step

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_PLAIN = {"llama", "qwen2", "qwen3", "gemma3"}  # one tensor goes from layer to layer, and nothing past them


class FrozenLayers:
    """The layers of `model` below its first tuned one, and what they made of the families that `steps` repeat."""

    def __init__(self, model: Any, steps: Sequence[Step]) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._decoder = inner.get_decoder()
        lowest = _lowest_tuned(self._decoder)
        self._below, self._above = self._decoder.layers[:lowest], self._decoder.layers[lowest:]
        self._left = Counter(_name(family) for step in steps for family in step.families)
        self._kept: dict[str, torch.Tensor] = {}

    def states(self, row: Sequence[Family]) -> torch.Tensor:
        """What enters the first tuned layer: [1, length of the row, hidden]."""
        made = torch.cat([self._states(family) for family in row], dim=1)
        return torch.nn.functional.pad(made, (0, 0, 0, batches.padded(made.shape[1]) - made.shape[1]))

    def forget(self, step: Step) -> None:
        """After the step: nothing is kept for families that do not come again."""
        for family in step.families:
            name = _name(family)
            self._left[name] -= 1
            if self._left[name] <= 0:
                self._kept.pop(name, None)

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """The decoder, given `states` as its embeddings, runs the tuned layers alone."""
        with _passing(self._below):
            yield

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _states(self, family: Family) -> torch.Tensor:
        name = _name(family)
        if name not in self._kept:
            batch = batches.micro_batch([family])
            with _passing([*self._above, self._decoder.norm]):
                made = self._decoder(
                    input_ids=batch.input_ids,
                    position_ids=batch.position_ids,
                    layouts=batch.layouts,
                    use_cache=False,
                )
            states = made.last_hidden_state[:, : family.tokens]
            if self._left[name] <= 1:
                return states
            self._kept[name] = states
        return self._kept[name]


def repeated_tokens(steps: Sequence[Step]) -> int:
    """Tokens of the families that occur in more than one step: what keeping their states must hold at most."""
    seen: Counter[str] = Counter()
    tokens = {}
    for step in steps:
        for family in step.families:
            seen[_name(family)] += 1
            tokens[_name(family)] = family.tokens
    return sum(tokens[name] for name, count in seen.items() if count > 1)


def knows(architecture: str) -> bool:
    """Whether the architecture's layers can be run in two parts."""
    return architecture in _PLAIN


def _lowest_tuned(decoder: Any) -> int:
    tuned = [
        int(found[1])
        for name, parameter in decoder.named_parameters()
        if parameter.requires_grad and (found := _LAYER.search(name))
    ]
    return min(tuned)


def _name(family: Family) -> str:
    return family.samples[0].id  # a conversation is in one family only


@contextmanager
def _passing(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """These modules hand on what they get."""
    own = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = _hand_on  # on the instance, where it hides the class's own
    try:
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _hand_on(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return hidden_states
