"""Measure the shipped file and, on the same turns in the same run, the untuned base."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import LlamaCpp
from pipeline.config import GateConfig, ValidationConfig
from pipeline.data.dataset import Conversation
from pipeline.errors import DataError, GateRefused
from pipeline.llama_server import serve
from pipeline.progress import Stage
from pipeline.validation import tool_calls
from pipeline.validation.play import Reply, play


def held_out(conversations: Sequence[Conversation], limit: int | None) -> list[Conversation]:
    """The test split, or an even share of each category when a limit is set."""
    test = [conversation for conversation in conversations if conversation.split == "test"]
    if not test:
        raise DataError(
            "no conversation is held out: the test split is empty",
            where="training_data",
            fix="add scenarios: about one in ten is held out",
        )
    if limit is None or limit >= len(test):
        return test
    by_category: dict[str, list[Conversation]] = {}
    for conversation in test:
        by_category.setdefault(conversation.category, []).append(conversation)
    chosen: list[Conversation] = []
    while len(chosen) < limit:
        for group in by_category.values():
            if group and len(chosen) < limit:
                chosen.append(group.pop(0))
    return chosen


def measure(
    model: Path,
    conversations: Sequence[Conversation],
    llama: LlamaCpp,
    config: ValidationConfig,
    threads: int,
    stage: Stage,
    what: str,
) -> tuple[dict[str, Any], list[Reply]]:
    """Figures and replies of one GGUF on `conversations`."""
    started = time.monotonic()

    def show(done: int, total: int) -> None:
        stage.update(done, total, f"turns of {what}")

    with serve(llama, model, threads=threads, slots=config.slots) as server:
        replies = play(server, conversations, slots=config.slots, max_tokens=config.max_reply_tokens, on_turn=show)
    seconds = time.monotonic() - started
    judged = [tool_calls.judge(reply) for reply in replies]
    result: dict[str, Any] = tool_calls.figures(judged)
    result["by_tool"] = tool_calls.table(judged, tool_calls.tool_key)
    result["by_category"] = tool_calls.table(judged, lambda turn: turn.category)
    result["speed"] = {
        "turns": len(replies),
        "seconds": round(seconds, 1),
        "generated_tokens_per_second": round(sum(reply.tokens for reply in replies) / seconds, 1),
    }
    return result, replies


def validate(
    model: Path,
    baseline: Path,
    conversations: Sequence[Conversation],
    llama: LlamaCpp,
    config: ValidationConfig,
    threads: int,
    out: Path,
    stage: Stage,
) -> dict[str, Any]:
    """Write validation.json and generations.jsonl; returns the content of validation.json."""
    chosen = held_out(conversations, config.conversations)
    result, replies = measure(model, chosen, llama, config, threads, stage, "the model")
    compared = held_out(chosen, config.baseline_conversations)
    base, base_replies = measure(baseline, compared, llama, config, threads, stage, "the untuned base")
    result["baseline"] = base
    result["conversations"] = len(chosen)
    result["baseline_conversations"] = len(compared)
    files.write_text(out / "generations.jsonl", _lines(replies, "model") + _lines(base_replies, "baseline"))
    files.write_json(out / "validation.json", result)
    return result


def check_gate(result: dict[str, Any], gate: GateConfig) -> list[str]:
    """Why the model is refused; empty when it passes."""
    accuracy = result["tool_call_accuracy"]["value"]
    base = result["baseline"]["tool_call_accuracy"]["value"]
    stops = result["stop_rate"]["value"]
    reasons = []
    if accuracy < gate.min_tool_call_accuracy:
        reasons.append(f"tool-call accuracy is {accuracy:.3f}, at least {gate.min_tool_call_accuracy:.3f} is wanted")
    if accuracy - base < gate.min_gain_over_base:
        reasons.append(
            f"tool-call accuracy {accuracy:.3f} is not {gate.min_gain_over_base:.2f} above the untuned base's {base:.3f}"
        )
    if stops < gate.min_stop_rate:
        reasons.append(f"only {stops:.3f} of the replies end by themselves, at least {gate.min_stop_rate:.2f} should")
    return reasons


def require_gate(result: dict[str, Any], gate: GateConfig, run: Path) -> None:
    """Raise GateRefused (exit 3) with every reason; the model stays in the run's folder."""
    reasons = check_gate(result, gate) if gate.enabled else []
    if reasons:
        raise GateRefused(
            "the model was measured and refused:\n  " + "\n  ".join(reasons),
            where=str(run / "validation" / "validation.json"),
            fix="add or mend training data, train longer (--preset best), or change the gate in the config; nothing in assets/models changed",
        )


def _lines(replies: list[Reply], model: str) -> str:
    import json

    return "".join(
        json.dumps({"model": model, **asdict(reply)}, sort_keys=True, ensure_ascii=False) + "\n" for reply in replies
    )
