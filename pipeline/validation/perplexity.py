"""How surprised a GGUF is by the gold replies: perplexity a token, on the Dungeon Master's words alone."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import LlamaCpp
from pipeline.data.dataset import Message
from pipeline.errors import ValidationError
from pipeline.llama_server import LlamaServer

_WORST = 50.0  # nats a token: beyond it a model is broken, and exp would leave what JSON can write


@dataclass(frozen=True, slots=True)
class Scored:
    """One conversation's token ids, and whether each of them belongs to a gold reply."""

    ids: tuple[int, ...]
    gold: tuple[bool, ...]


def scored(server: LlamaServer, messages: Sequence[Message]) -> Scored:
    """Rendered by the template in the GGUF and tokenised by the server, up to the end of the last reply."""
    last = max(at for at, message in enumerate(messages) if message["role"] == "assistant")
    body = {"messages": [dict(message) for message in messages[:last]]}
    text = (server.post("/apply-template", body)["prompt"] + messages[last]["content"]).encode()
    request = {"content": text.decode(), "add_special": True, "parse_special": True, "with_pieces": True}
    tokens = server.post("/tokenize", request)["tokens"]
    spans = _spans(
        text, [message["content"].encode() for message in messages[: last + 1] if message["role"] == "assistant"]
    )
    ids, gold, at = [], [], 0
    for token in tokens:
        piece = token["piece"]
        size = len(piece.encode()) if isinstance(piece, str) else len(piece)
        starts = text.startswith(piece.encode() if isinstance(piece, str) else bytes(piece), at)
        ids.append(int(token["id"]))
        gold.append(starts and any(begin <= at and at + size <= end for begin, end in spans))
        at += size if starts else 0  # a token that is not in the text: the BOS that the server adds
    return Scored(tuple(ids), tuple(gold))


def perplexity(model: Path, texts: Sequence[Scored], llama: LlamaCpp, threads: int) -> dict[str, Any]:
    """exp of the mean negative log-likelihood (nats a token) over all gold tokens, and how many there were."""
    total, count = 0.0, 0
    for text in texts:
        wanted = [at for at, gold in enumerate(text.gold) if gold and at]
        if wanted:
            logits = _logits(model, text.ids, [at - 1 for at in wanted], llama, threads)
            targets = np.asarray([text.ids[at] for at in wanted])
            shifted = logits - logits.max(axis=1, keepdims=True)
            likelihood = shifted[np.arange(len(targets)), targets] - np.log(np.exp(shifted).sum(axis=1))
            total, count = total - float(likelihood.sum(dtype=np.float64)), count + len(wanted)
    nats = min(total / count, _WORST) if count else None
    return {"value": None if nats is None else float(np.exp(nats)), "tokens": count}


def _spans(text: bytes, replies: Sequence[bytes]) -> list[tuple[int, int]]:
    """Where each reply stands in the rendered text, in bytes."""
    spans, start = [], 0
    for reply in replies:
        found = text.find(reply, start)
        if found >= 0:
            start = found + len(reply)
            spans.append((found, start))
    return spans


def _logits(model: Path, ids: Sequence[int], positions: Sequence[int], llama: LlamaCpp, threads: int) -> np.ndarray:
    """The next-token logits at `positions`: [positions, vocabulary]."""
    wanted = set(positions)
    values = [1, len(ids), *ids, *(int(at in wanted) for at in range(len(ids)))]
    with tempfile.TemporaryDirectory() as folder:
        request, reply = Path(folder) / "request", Path(folder) / "reply"
        np.asarray(values, dtype="<i4").tofile(request)
        command = [str(llama.tool("dm-logits")), str(model), str(request), str(reply), str(threads), "f16"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            words = done.stderr.strip().splitlines()
            raise ValidationError(
                f"llama.cpp cannot compute with this file: {words[-1] if words else f'exit code {done.returncode}'}",
                where=str(model),
                fix="the file is damaged or of another llama.cpp: make or download it again",
            )
        return np.fromfile(reply, dtype="<f4").reshape(len(positions), -1)
