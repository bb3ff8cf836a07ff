"""What the file asks of a phone: its size, the memory it takes, how fast it reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from pipeline.artifacts import LlamaCpp
from pipeline.data.dataset import Message
from pipeline.llama_server import LlamaServer, serve

CONTEXTS = (2048, 4096)  # tokens: what the app asks for, and twice that
_THREADS = 4  # what the app asks for
_GENERATED = 48  # tokens
_PHONES = (2, 3, 4, 6, 8, 12, 16)  # GB of memory that phones are sold with
_USABLE = 0.5  # share of a phone's memory that one app may take before the system ends it; iOS is near this


def measure(model: Path, history: Sequence[Message], llama: LlamaCpp, threads: int) -> dict[str, Any]:
    """Bytes and tokens a second on this machine, on one real conversation; seconds to the first token of its reply.

    Memory is the server's resident set after a reply, weights included; the cache for the context is filled with
    zeros when it is made, so the whole of it counts.
    """
    used = min(_THREADS, threads)
    resident: dict[str, int] = {}
    timings: dict[str, Any] = {}
    for context in CONTEXTS:
        with serve(llama, model, threads=used, context=context) as server:
            timings = timings or _timed_reply(server, history)
            if context != CONTEXTS[0]:
                _timed_reply(server, history[:2])
            resident[str(context)] = int(psutil.Process(server.pid).memory_info().rss)
    need = resident[str(CONTEXTS[0])]
    return {
        "file_bytes": model.stat().st_size,
        "resident_bytes": resident,
        "threads": used,
        **timings,
        "smallest_phone_gb": smallest_phone(need),
        "statement": statement(need),
    }


def smallest_phone(need: int) -> int | None:
    """GB of memory of the smallest phone in which an app may take `need` bytes; None where no phone has that much."""
    return next((size for size in _PHONES if size * 1e9 * _USABLE >= need), None)


def statement(need: int) -> str:
    phone = smallest_phone(need)
    asked = f"{need / 1e6:.0f} MB at context {CONTEXTS[0]}"
    if phone is None:
        return f"needs {asked}: more than half the memory of any phone with up to {_PHONES[-1]} GB"
    return f"needs {asked}: fits phones with {phone} GB of memory or more (an app may take about half of it)"


def _timed_reply(server: LlamaServer, history: Sequence[Message]) -> dict[str, Any]:
    body = {
        "messages": list(history),
        "temperature": 0,
        "max_tokens": _GENERATED,
        "cache_prompt": False,
        "ignore_eos": True,
    }
    timings = server.post("/v1/chat/completions", body)["timings"]
    return {
        "prompt_tokens": int(timings["prompt_n"]),
        "prompt_tokens_per_second": round(timings["prompt_per_second"], 1),
        "generated_tokens_per_second": round(timings["predicted_per_second"], 1),
        "seconds_to_first_token": round(timings["prompt_ms"] / 1e3, 3),
    }
