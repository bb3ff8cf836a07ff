"""Does the held-out part hold anything that was trained on? Then its figures mean nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pipeline.data.dataset import Conversation

_RESULT = "<TOOLCALL>"
_LONG = 60  # characters: a shorter pair ("I wait." "You wait.") may meet by chance


def leaks(conversations: Sequence[Conversation]) -> list[str]:
    """Each leak in words: a scenario on both sides of the split, or an exchange that was trained and is measured."""
    found = []
    sides: dict[str, set[str]] = defaultdict(set)
    for conversation in conversations:
        if conversation.kind != "drills":
            sides[conversation.source].add(conversation.split)
    for source, splits in sorted(sides.items()):
        if "test" in splits and len(splits) > 1:
            found.append(f"{source} is in the parts {', '.join(sorted(splits))}")
    trained = {pair for item in conversations if item.split != "test" for pair in _exchanges(item)}
    for conversation in conversations:
        if conversation.split == "test":
            for player, reply in _exchanges(conversation):
                if (player, reply) in trained:
                    found.append(
                        f"{conversation.source}:{conversation.line}: “{player[:60]}” and its reply are trained on too"
                    )
    return found


def _exchanges(conversation: Conversation) -> list[tuple[str, str]]:
    """What players say and what is answered. Answers to a TOOLCALL are left out: in drills they come from a list that
    serves a whole section, on both sides of the split, and dice fall alike by chance."""
    messages = conversation.messages
    pairs = [
        (messages[at - 1]["content"], message["content"])
        for at, message in enumerate(messages)
        if message["role"] == "assistant" and at and not messages[at - 1]["content"].startswith(_RESULT)
    ]
    return [(player, reply) for player, reply in pairs if len(player) + len(reply) >= _LONG]
