"""Free-running games: the model sees its own replies, and its calls are executed with seeded dice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.data.dataset import Conversation, Message
from pipeline.data.tools import find_calls
from pipeline.game import Table, toolcall, toolcall_text
from pipeline.llama_server import LlamaServer
from pipeline.statistics import ratio
from pipeline.validation import context, prose
from pipeline.validation.play import turns
from pipeline.validation.servers import answer, share_out

_CHAIN = 3  # results fed back before the player speaks again: a model that only calls would never let anyone speak


@dataclass(frozen=True, slots=True)
class FreeTurn:
    """One reply in a game of the model's own; `executed` has a result (or None where refused) for each call."""

    conversation: str
    player: str
    text: str
    calls: tuple[str, ...]
    executed: tuple[str | None, ...]
    stopped: bool
    contradictions: tuple[str, ...]
    leaks: tuple[str, ...]


def play_freely(
    servers: Sequence[LlamaServer],
    conversations: Sequence[Conversation],
    *,
    max_tokens: int,
    seed: int,
    on_turn: Callable[[int, int], None] | None = None,
) -> list[FreeTurn]:
    """Play each conversation's player lines for as many DM turns as its gold has."""
    total = sum(turns(conversation) for conversation in conversations)
    finished = 0

    def one(server: LlamaServer, numbered: tuple[int, Conversation]) -> list[FreeTurn]:
        nonlocal finished
        number, conversation = numbered
        played = _game(server, conversation, max_tokens, seed + number)
        finished += turns(conversation)
        if on_turn:
            on_turn(finished, total)
        return played

    games = share_out(servers, list(enumerate(conversations)), one, lambda numbered: turns(numbered[1]))
    return [turn for game in games for turn in game]


def _game(server: LlamaServer, conversation: Conversation, max_tokens: int, seed: int) -> list[FreeTurn]:
    history: list[Message] = [message for message in conversation.messages[:1] if message["role"] == "system"]
    table = Table(history[0]["content"] if history else "", seed)
    lines = [message["content"] for message in conversation.messages if message["role"] == "user"]
    players = [line for line in lines if toolcall_text(line) is None]
    played: list[FreeTurn] = []
    for line in players:
        said = line
        for _ in range(_CHAIN):
            if len(played) == turns(conversation):
                return played
            history.append(Message(role="user", content=said))
            said_back = answer(server, history, max_tokens, first=not played)
            turn = _turn(conversation.id, history, table, said_back["choices"][0])
            played.append(turn)
            history.append(Message(role="assistant", content=turn.text))
            results = [result for result in turn.executed if result]
            if not results:
                break
            said = toolcall("\n".join(results))
    return played


def _turn(game: str, history: Sequence[Message], table: Table, choice: Any) -> FreeTurn:
    text = choice["message"]["content"] or ""
    calls = find_calls(text)
    return FreeTurn(
        conversation=game,
        player=history[-1]["content"],
        text=text,
        calls=tuple(str(call) for call in calls),
        executed=tuple(table.execute(call) for call in calls),
        stopped=choice["finish_reason"] == "stop",
        contradictions=context.contradictions(text, history),
        leaks=context.leaks(text),
    )


def figures(played: Sequence[FreeTurn]) -> dict[str, Any]:
    """Shares over the turns of all games, with intervals; `legal_calls` is over the calls made."""
    seen: set[tuple[str, str]] = set()
    again = []
    for turn in played:
        again.append((turn.conversation, turn.text) in seen)
        seen.add((turn.conversation, turn.text))

    def share(of: Callable[[FreeTurn], float]) -> dict[str, Any]:
        return ratio((turn.conversation, of(turn), 1.0) for turn in played).as_dict()

    return {
        "games": len({turn.conversation for turn in played}),
        "turns_with_a_call": share(lambda turn: bool(turn.calls)),
        "legal_calls": ratio(
            (turn.conversation, float(result is not None), 1.0) for turn in played for result in turn.executed
        ).as_dict(),
        "stop_rate": share(lambda turn: turn.stopped),
        "repetition": share(lambda turn: prose.repetition(prose.words(turn.text))),
        "said_before": ratio(
            (turn.conversation, float(same), 1.0) for turn, same in zip(played, again, strict=True)
        ).as_dict(),
        "contradictions": share(lambda turn: bool(turn.contradictions)),
        "out_of_character": share(lambda turn: bool(turn.leaks)),
    }


def rows(played: Sequence[FreeTurn]) -> list[dict[str, Any]]:
    """The games as plain data, for generations.jsonl."""
    return [asdict(turn) for turn in played]
