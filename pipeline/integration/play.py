"""A game in the terminal: the model is the Dungeon Master, its calls are executed with seeded dice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.artifacts import LlamaCpp
from pipeline.data.dataset import Message
from pipeline.data.tools import find_calls
from pipeline.game import Table, toolcall
from pipeline.integration.cactus import MAX_TOKENS
from pipeline.integration.grammar import for_messages
from pipeline.llama_server import LlamaServer, serve

PARTY = (
    "Role: Dungeon Master\nWorld: Forgotten Realms\nLocation: The Yawning Portal, an inn above a dungeon\nParty:\n"
    "- Thordak (Dragonborn Fighter, Level 5, HP: 45/45)\n- Elara (Elf Wizard, Level 5, HP: 28/28)"
)
_CHAIN = 3  # results fed back before the player may speak again
_ROOM = 600  # tokens kept free for the next exchange


def play(
    model: Path,
    llama: LlamaCpp,
    threads: int,
    lines: Iterator[str],
    say: Callable[[str], None],
    *,
    system: str = PARTY,
    seed: int = 1,
    temperature: float = 0.7,
) -> None:
    """Answer each player's line until `lines` ends; the sampler is held to the grammar, so every call is a legal one."""
    history: list[Message] = [Message(role="system", content=system)]
    table = Table(system, seed)
    with serve(llama, model, threads=threads, context=MAX_TOKENS) as server:
        for line in lines:
            said = line.strip()
            for _ in range(_CHAIN):
                if not said:
                    break
                history.append(Message(role="user", content=said))
                reply = _answer(server, history, seed + len(history), temperature)
                history.append(Message(role="assistant", content=reply))
                say(reply)
                results = [result for call in find_calls(reply) if (result := table.execute(call))]
                for result in results:
                    say(f"  ⚄ {result}")
                said = toolcall("\n".join(results)) if results else ""


def _answer(server: LlamaServer, history: list[Message], seed: int, temperature: float) -> str:
    body = {
        "messages": history,
        "temperature": temperature,
        "top_p": 0.9,
        "seed": seed,
        "max_tokens": 256,
        "grammar": for_messages(history),
        "cache_prompt": True,
    }
    answer = server.post("/v1/chat/completions", body)
    if answer["usage"]["total_tokens"] > MAX_TOKENS - _ROOM:
        del history[1:3]  # the oldest exchange is forgotten, as in the app
    return str(answer["choices"][0]["message"]["content"] or "")
