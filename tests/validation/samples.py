"""A small held-out part, and replies to it with known faults."""

from __future__ import annotations

from pipeline.data.dataset import Conversation, Message
from pipeline.validation.play import Reply

SYSTEM = (
    "Role: Dungeon Master\nWorld: Faerûn\nLocation: Tavern\nParty:\n"
    "- Thordak (Dragonborn Fighter, Level 5, HP: 40/45)\n- Elara (Elf Wizard, Level 5, HP: 28/28)"
)
TURNS = (
    ("user", "I sneak past the guard."),
    ("assistant", "The guard yawns at the wrong moment.\n\n[roll: stealth]"),
    ("user", "<TOOLCALL>stealth: 12 + 5(skill) = *17*</TOOLCALL>"),
    ("assistant", "You are a shadow among barrels, and nobody turns."),
    ("user", "A falling beam hits Thordak for 5."),
    ("assistant", "The beam clips his shoulder, and he swears.\n\n[health: Thordak, -5]"),
    ("user", "<TOOLCALL>health: Thordak health reduced by 5</TOOLCALL>"),
    ("assistant", "He rubs the bruise and limps on towards the cellar."),
)


def conversation(number: int = 0, split: str = "test", category: str = "stealth") -> Conversation:
    messages = (Message(role="system", content=SYSTEM), *(Message(role=role, content=text) for role, text in TURNS))  # type: ignore[typeddict-item]
    source = f"training_data/{category}/game_{number}.md"
    return Conversation(f"{category}/game_{number}", source, 1, category, "scenario", split, 1.0, messages)  # type: ignore[arg-type]


def replies(item: Conversation, texts: dict[int, str] | None = None, stopped: bool = True) -> list[Reply]:
    """Gold itself at every turn, but for `texts` (by the message's place)."""
    return [
        Reply(
            conversation=item.id,
            source=item.source,
            line=item.line,
            category=item.category,
            index=at,
            player=item.messages[at - 1]["content"],
            gold=message["content"],
            text=(texts or {}).get(at, message["content"]),
            stopped=stopped,
            tokens=12,
        )
        for at, message in enumerate(item.messages)
        if message["role"] == "assistant"
    ]
