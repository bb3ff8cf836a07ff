"""Measure the shipped file and, on the same turns in the same run, the untuned base and the promoted model."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import LlamaCpp
from pipeline.config import ValidationConfig
from pipeline.data.dataset import Conversation
from pipeline.errors import DataError
from pipeline.llama_server import LlamaServer
from pipeline.progress import Stage
from pipeline.validation import games, phone, runtime
from pipeline.validation.figures import COMPARED, compare, figures
from pipeline.validation.leaks import leaks
from pipeline.validation.perplexity import perplexity, scored
from pipeline.validation.play import GrammarOf, Reply, play, turns
from pipeline.validation.servers import serve_apart
from pipeline.validation.tool_calls import Judged, judge

_SEED = 7  # of the dice in free-running games: the same game for every model


def held_out(conversations: Sequence[Conversation], limit: int | None) -> list[Conversation]:
    """The test split, or an even share of each category when a limit is set."""
    test = [conversation for conversation in conversations if conversation.split == "test"]
    if not test:
        raise DataError(
            "no conversation is held out: the test split is empty",
            where="training_data",
            fix="add scenarios: about one in ten is held out",
        )
    return fair_share(test, limit)


def fair_share(conversations: Sequence[Conversation], limit: int | None) -> list[Conversation]:
    """At most `limit` conversations, taken from the categories in turn."""
    if limit is None or limit >= len(conversations):
        return list(conversations)
    by_category: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        by_category.setdefault(conversation.category, []).append(conversation)
    chosen: list[Conversation] = []
    while len(chosen) < limit:
        for group in by_category.values():
            if group and len(chosen) < limit:
                chosen.append(group.pop(0))
    return chosen


def judge_all(replies: Sequence[Reply], conversations: Sequence[Conversation]) -> list[Judged]:
    """Each reply against its gold; the history is the gold one that the model had."""
    messages = {conversation.id: conversation.messages for conversation in conversations}
    return [judge(reply, messages[reply.conversation][: reply.index]) for reply in replies]


def measure(
    model: Path,
    conversations: Sequence[Conversation],
    llama: LlamaCpp,
    config: ValidationConfig,
    threads: int,
    stage: Stage,
    what: str,
) -> tuple[dict[str, Any], list[Reply]]:
    """Figures and replies of one GGUF on `conversations`, each turn played from its gold history."""
    started = time.monotonic()

    def show(done: int, total: int) -> None:
        stage.update(done, total, f"turns of {what}")

    with serve_apart(llama, model, threads=threads, most=config.slots, context=config.context) as servers:
        replies = play(servers, conversations, max_tokens=config.max_reply_tokens, on_turn=show)
        seconds = time.monotonic() - started
        texts = [
            scored(servers[0], item.messages) for item in fair_share(conversations, config.perplexity_conversations)
        ]
    result = figures(judge_all(replies, conversations))
    result["perplexity"] = perplexity(model, texts, llama, threads)
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
    *,
    promoted: Path | None = None,
    exact: Path | None = None,
    cache_dir: Path | None = None,
    grammar_of: GrammarOf | None = None,
) -> dict[str, Any]:
    """Write validation.json and generations.jsonl; returns the content of validation.json.

    `promoted` is the model on the shelf, if there is one and it is another; `exact` the trained model before it was
    shrunk; `cache_dir` is where the runtime check finds its client; `grammar_of` gives a conversation's exported
    grammar, with which some conversations are played once more.
    """
    chosen = held_out(conversations, config.conversations)
    compared = fair_share(chosen, config.baseline_conversations)
    unshrunk = fair_share(chosen, config.exact_conversations)
    result, replies = measure(model, chosen, llama, config, threads, stage, "the model")
    result |= {"conversations": len(chosen), "baseline_conversations": len(compared)}
    result |= {"file_bytes": model.stat().st_size, "split_leaks": leaks(conversations)}
    lines = _lines("model", replies)
    judged = judge_all(replies, chosen)
    rivals = (
        ("baseline", baseline, compared, "the untuned base"),
        ("promoted", promoted, compared, "the promoted model"),
        ("exact", exact, unshrunk, "the unshrunk model"),
    )
    for name, path, played, what in rivals:
        if path is None or not played:
            continue
        rival, rival_replies = measure(path, played, llama, config, threads, stage, what)
        result[name] = rival | {"comparison": compare(judged, judge_all(rival_replies, played))}
        lines += _lines(name, rival_replies)
    with serve_apart(llama, model, threads=threads, most=config.slots, context=config.context) as servers:
        lines += _free_games(servers, chosen, config, stage, result)
        if grammar_of:
            _with_grammar(servers, chosen, judged, config, stage, grammar_of, result)
    if config.phone:
        longest = max(chosen, key=turns)
        result["phone"] = phone.measure(model, longest.messages[:-1], llama, threads)
    if config.runtime_check and cache_dir:
        stage.update(0, 1, "a client that is not ours")
        result["runtime_check"] = runtime.check(model, chosen, llama, cache_dir, threads)
    files.write_text(out / "generations.jsonl", lines)
    files.write_json(out / "validation.json", result)
    return result


def _free_games(
    servers: Sequence[LlamaServer],
    conversations: Sequence[Conversation],
    config: ValidationConfig,
    stage: Stage,
    result: dict[str, Any],
) -> str:
    """Put the figures of free-running games into `result`; returns their lines for generations.jsonl."""
    chosen = fair_share(conversations, config.free_games)
    if not config.free_games:
        return ""

    def show(done: int, total: int) -> None:
        stage.update(done, total, "turns of free games")

    played = games.play_freely(servers, chosen, max_tokens=config.max_reply_tokens, seed=_SEED, on_turn=show)
    result["free_games"] = games.figures(played)
    return "".join(_line({"model": "free game", **row}) for row in games.rows(played))


def _with_grammar(
    servers: Sequence[LlamaServer],
    conversations: Sequence[Conversation],
    without: Sequence[Judged],
    config: ValidationConfig,
    stage: Stage,
    grammar_of: GrammarOf,
    result: dict[str, Any],
) -> None:
    """Play some conversations once more with the exported grammar: what it changes, on the same turns."""
    chosen = fair_share(conversations, config.grammar_conversations)
    if not config.grammar_conversations:
        return

    def show(done: int, total: int) -> None:
        stage.update(done, total, "turns with the grammar")

    replies = play(
        servers,
        chosen,
        max_tokens=config.max_reply_tokens,
        on_turn=show,
        grammar_of=grammar_of,
    )
    judged = judge_all(replies, chosen)
    measured = figures(judged)
    kept = {name: measured[name] for name in (*COMPARED, "malformed_calls", "contradictions")}
    result["grammar"] = kept | {"conversations": len(chosen), "comparison": compare(judged, without)}


def _lines(model: str, replies: Sequence[Reply]) -> str:
    return "".join(_line({"model": model, **asdict(reply)}) for reply in replies)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False) + "\n"
