"""The shipped file plays held-out conversations: every DM turn is asked for from its gold history, as the app would."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.data.dataset import Conversation, Message
from pipeline.llama_server import LlamaServer

GrammarOf = Callable[[Conversation], str]  # a GBNF grammar fit for the conversation's party


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said where gold says `gold`; `index` is the message's place in the conversation."""

    conversation: str
    source: str
    line: int
    category: str
    index: int
    player: str
    gold: str
    text: str
    stopped: bool
    tokens: int


def play(
    server: LlamaServer,
    conversations: Sequence[Conversation],
    *,
    slots: int,
    max_tokens: int,
    on_turn: Callable[[int, int], None] | None = None,
    grammar_of: GrammarOf | None = None,
) -> list[Reply]:
    """Ask for every assistant turn at temperature 0, one conversation a slot so that its prompt cache is used.

    Replies come in the order of `conversations`; the longest are played first, so that no slot idles at the end.
    """
    total = sum(turns(conversation) for conversation in conversations)
    done, lock = 0, threading.Lock()
    free = list(range(slots))

    def one(conversation: Conversation) -> list[Reply]:
        nonlocal done
        with lock:
            slot = free.pop()
        grammar = grammar_of(conversation) if grammar_of else None
        try:
            replies = []
            for index, message in enumerate(conversation.messages):
                if message["role"] == "assistant":
                    replies.append(_ask(server, conversation, index, slot, max_tokens, grammar))
                    with lock:
                        done += 1
                        if on_turn:
                            on_turn(done, total)
            return replies
        finally:
            with lock:
                free.append(slot)

    order = sorted(range(len(conversations)), key=lambda place: -turns(conversations[place]))
    with ThreadPoolExecutor(slots) as pool:
        played = dict(zip(order, pool.map(one, [conversations[place] for place in order]), strict=True))
    return [reply for place in sorted(played) for reply in played[place]]


def turns(conversation: Conversation) -> int:
    return sum(message["role"] == "assistant" for message in conversation.messages)


def _ask(
    server: LlamaServer, conversation: Conversation, index: int, slot: int, max_tokens: int, grammar: str | None
) -> Reply:
    history: Sequence[Message] = conversation.messages[:index]
    body = {
        "messages": [dict(message) for message in history],
        "temperature": 0,
        "max_tokens": max_tokens,
        "cache_prompt": True,
        "id_slot": slot,
    }
    if grammar:
        body["grammar"] = grammar
    answer = server.post("/v1/chat/completions", body)
    choice = answer["choices"][0]
    return Reply(
        conversation=conversation.id,
        source=conversation.source,
        line=conversation.line,
        category=conversation.category,
        index=index,
        player=history[-1]["content"],
        gold=conversation.messages[index]["content"],
        text=choice["message"]["content"] or "",
        stopped=choice["finish_reason"] == "stop",
        tokens=int(answer["usage"]["completion_tokens"]),
    )
