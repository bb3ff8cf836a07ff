"""The loss of a row of conversations, and of the held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipeline.training import batches, kernels
from pipeline.training.batches import Family, MicroBatch


def install(model: Any) -> None:
    """Give the model a forward that returns the summed loss of a row, so that wrappers such as DDP see one call."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, head = inner.get_decoder(), inner.get_output_embeddings()
    softcap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)

    def forward(
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        layouts: tuple[tuple[int, ...], ...],
        predictors: torch.Tensor,
        goals: torch.Tensor,
        shares: torch.Tensor,
        states: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        start = {"input_ids": input_ids} if states is None else {"inputs_embeds": states}
        hidden = decoder(**start, position_ids=position_ids, layouts=layouts, use_cache=False)
        return kernels.head_loss(hidden.last_hidden_state[0, predictors], head.weight, goals, shares, softcap)

    inner.forward = forward


def row_loss(model: Any, batch: MicroBatch, states: torch.Tensor | None = None) -> torch.Tensor:
    """Cross entropy summed over the row's supervised tokens by their shares; [] fp32. With `states` the decoder goes on
    from there (see frozen.py)."""
    loss: torch.Tensor = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        layouts=batch.layouts,
        predictors=batch.predictors,
        goals=batch.labels,
        shares=batch.shares,
        states=states,
    )
    return loss


@torch.no_grad()  # type: ignore[untyped-decorator]
def held_out_loss(model: Any, drawn: Sequence[Family], row_tokens: int, device: torch.device) -> float:
    """Mean loss in nats per supervised token, by their shares."""
    model.eval()
    total = 0.0
    for row in batches.pack(drawn, row_tokens):
        total += float(row_loss(model, batches.micro_batch(row).to(device)))
    model.train()
    return total / sum(share for family in drawn for _, _, share in family.targets())
