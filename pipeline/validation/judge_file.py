"""`eval`: judge any GGUF on any conversations, ours or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import LlamaCpp
from pipeline.config import ValidationConfig
from pipeline.data.dataset import Conversation
from pipeline.errors import UsageError
from pipeline.progress import Stage
from pipeline.validation.evaluate import measure

_SHOWN = (
    "tool_call_accuracy",
    "call_turn_accuracy",
    "no_call_accuracy",
    "tool_name_accuracy",
    "argument_accuracy",
    "calls_invented",
    "malformed_calls",
    "stop_rate",
    "repetition",
    "distinct_2",
    "length_ratio",
    "chrf",
    "contradictions",
    "out_of_character",
)


def judge_file(
    model: Path,
    conversations: Sequence[Conversation],
    llama: LlamaCpp,
    config: ValidationConfig,
    threads: int,
    stage: Stage,
) -> dict[str, Any]:
    """All figures of a GGUF on every turn of `conversations`. Raises UsageError where there is nothing to judge."""
    if not model.is_file():
        raise UsageError(f"there is no model {str(model)!r}", where="eval", fix="give the path of a GGUF file")
    if not any(message["role"] == "assistant" for item in conversations for message in item.messages):
        raise UsageError("there is no DM turn to judge", where="eval", fix="give scenario files with `## DM` sections")
    played = [item for item in conversations if any(message["role"] == "assistant" for message in item.messages)]
    result, replies = measure(model, played, llama, config, threads, stage, model.name)
    return result | {"conversations": len(played), "replies": [reply.text for reply in replies]}


def lines(result: dict[str, Any]) -> list[str]:
    """The figures as lines for a terminal."""
    found = [
        f"{name.replace('_', ' '):<20} {result[name]['value']:.3f}  "
        f"(95 %: {result[name]['low']:.3f}–{result[name]['high']:.3f}, {result[name]['turns']} turns)"
        for name in _SHOWN
    ]
    for table in ("by_tool", "by_category"):
        found += [
            f"{table[3:]} {row:<15} {figure['value']:.3f} of {figure['turns']}" for row, figure in result[table].items()
        ]
    return found
