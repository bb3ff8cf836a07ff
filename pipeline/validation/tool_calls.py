"""One reply against its gold: is the call the right one, and if not, what went wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.data.dataset import Message
from pipeline.data.tools import Call, calls_match, find_calls, load_vocabulary
from pipeline.game import toolcall_text
from pipeline.validation import context, prose
from pipeline.validation.play import Reply

_OPEN_BRACKET = re.compile(r"\[[^\]]*$|\[[^\]:]*\]")
NO_CALL = "none"


@dataclass(frozen=True, slots=True)
class Judged:
    """`hit` is the app's truth, the rest says what went wrong; `after` is what the reply answers."""

    conversation: str
    index: int
    category: str
    after: Literal["player", "toolcall"]
    gold: tuple[Call, ...]
    found: tuple[Call, ...]
    hit: bool
    name: bool
    malformed: bool
    stopped: bool
    words: tuple[str, ...]
    gold_words: int
    chrf: float
    contradictions: tuple[str, ...]
    leaks: tuple[str, ...]

    @property
    def wants_call(self) -> bool:
        return bool(self.gold)

    @property
    def invented(self) -> bool:
        return bool(self.found) and not self.gold

    @property
    def tool(self) -> str:
        """The gold call's tool, or `none`."""
        return self.gold[0].tool if self.gold else NO_CALL


def judge(reply: Reply, history: Sequence[Message]) -> Judged:
    """`history` is what the model had before it: the gold messages, or its own game."""
    gold, found = find_calls(reply.gold), find_calls(reply.text)
    vocabulary = load_vocabulary()
    words = prose.words(reply.text)
    return Judged(
        conversation=reply.conversation,
        index=reply.index,
        category=reply.category,
        after="player" if toolcall_text(reply.player) is None else "toolcall",
        gold=tuple(gold),
        found=tuple(found),
        hit=calls_match(gold, found),
        name=[call.tool for call in gold] == [call.tool for call in found],
        malformed=bool(_OPEN_BRACKET.search(reply.text)) or any(vocabulary.match(call) is None for call in found),
        stopped=reply.stopped,
        words=words,
        gold_words=len(prose.words(reply.gold)),
        chrf=prose.chrf(prose.without_calls(reply.text), prose.without_calls(reply.gold)),
        contradictions=context.contradictions(reply.text, history),
        leaks=context.leaks(reply.text),
    )


def key(calls: Sequence[Call]) -> str:
    """A call without what varies from game to game: `roll: stealth`, `roll: dice`, `health`, `none`.

    Calls whose arguments come from a list keep them; of a tool that has such calls, the others are told by their form.
    """
    if not calls:
        return NO_CALL
    if len(calls) > 1:
        return "several calls"
    vocabulary = load_vocabulary()
    matched = vocabulary.match(calls[0])
    if matched is None:
        return "unknown call"
    if vocabulary.expansions(matched.form):
        return f"{matched.tool.name}: {calls[0].arguments}"
    listed = any(vocabulary.expansions(form) for form in matched.tool.forms)
    return f"{matched.tool.name}: {matched.form.name}" if listed else matched.tool.name
