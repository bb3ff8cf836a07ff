"""The shipped file plays held-out conversations: every DM turn is asked for from its gold history, as the app would."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.dataset import Conversation
from pipeline.llama_server import LlamaServer
from pipeline.validation.servers import answer, share_out

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
    servers: Sequence[LlamaServer],
    conversations: Sequence[Conversation],
    *,
    max_tokens: int,
    on_turn: Callable[[int, int], None] | None = None,
    grammar_of: GrammarOf | None = None,
) -> list[Reply]:
    """Ask for every assistant turn at temperature 0; the replies come in the order of `conversations`."""
    total = sum(turns(conversation) for conversation in conversations)
    done, lock = 0, threading.Lock()

    def one(server: LlamaServer, conversation: Conversation) -> list[Reply]:
        nonlocal done
        grammar = grammar_of(conversation) if grammar_of else None
        replies: list[Reply] = []
        for index, message in enumerate(conversation.messages):
            if message["role"] == "assistant":
                history = conversation.messages[:index]
                said = answer(server, history, max_tokens, first=not replies, grammar=grammar)
                replies.append(_reply(conversation, index, said))
                with lock:
                    done += 1
                    if on_turn:
                        on_turn(done, total)
        return replies

    return [reply for replies in share_out(servers, conversations, one, turns) for reply in replies]


def turns(conversation: Conversation) -> int:
    return sum(message["role"] == "assistant" for message in conversation.messages)


def _reply(conversation: Conversation, index: int, said: Any) -> Reply:
    choice = said["choices"][0]
    return Reply(
        conversation=conversation.id,
        source=conversation.source,
        line=conversation.line,
        category=conversation.category,
        index=index,
        player=conversation.messages[index - 1]["content"],
        gold=conversation.messages[index]["content"],
        text=choice["message"]["content"] or "",
        stopped=choice["finish_reason"] == "stop",
        tokens=int(said["usage"]["completion_tokens"]),
    )
