"""Servers that give the same replies every time, and the sharing out of conversations among them.

A server that batches several conversations rounds differently with every mix, and so does a cache that holds what was
played before: 25 of 55 replies differed between two evaluations at temperature 0. So each conversation has a server to
itself (one slot, one thread where there are enough servers) and begins with an empty cache; within a conversation the
cache holds what its own turns have put there.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pipeline.artifacts import LlamaCpp
from pipeline.data.dataset import Message
from pipeline.llama_server import LlamaServer, serve

T = TypeVar("T")
R = TypeVar("R")
_COPIES = 2e9  # bytes: each server may hold the weights once more, repacked for this processor


@contextmanager
def serve_apart(llama: LlamaCpp, model: Path, *, threads: int, most: int, context: int) -> Iterator[list[LlamaServer]]:
    """At most `most` servers of one slot; they share the threads."""
    count = number_of_servers(threads, most, model.stat().st_size)
    with ExitStack() as stack:
        # The cache in main memory brings back what other conversations computed: see above.
        options = {"threads": threads // count, "context": context, "arguments": ("--cache-ram", "0")}
        yield [stack.enter_context(serve(llama, model, **options)) for _ in range(count)]  # type: ignore[arg-type]


def number_of_servers(threads: int, most: int, file_bytes: int) -> int:
    """One a thread, but no more than `most`, nor more than the copies of the weights may take together."""
    return max(1, min(most, threads, int(_COPIES / max(1, file_bytes))))


def share_out(
    servers: Sequence[LlamaServer], items: Sequence[T], work: Callable[[LlamaServer, T], R], size: Callable[[T], int]
) -> list[R]:
    """`work` on each item by whichever server is free, the largest first so that none idles at the end; in the order of `items`."""
    free: queue.SimpleQueue[LlamaServer] = queue.SimpleQueue()
    for server in servers:
        free.put(server)

    def one(item: T) -> R:
        server = free.get()
        try:
            return work(server, item)
        finally:
            free.put(server)

    order = sorted(range(len(items)), key=lambda place: -size(items[place]))
    with ThreadPoolExecutor(len(servers)) as pool:
        done = dict(zip(order, pool.map(one, [items[place] for place in order]), strict=True))
    return [done[place] for place in range(len(items))]


def answer(
    server: LlamaServer, history: Sequence[Message], max_tokens: int, *, first: bool, grammar: str | None = None
) -> Any:
    """The server's greedy reply to `history`; `first` in a conversation forgets what the server played before."""
    body = {
        "messages": [dict(message) for message in history],
        "temperature": 0,
        "max_tokens": max_tokens,
        "cache_prompt": not first,
    }
    return server.post("/v1/chat/completions", body | ({"grammar": grammar} if grammar else {}))
