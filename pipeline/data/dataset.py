"""The conversations a run is trained and measured on: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypedDict, get_args

from pipeline.errors import DataError

Split = Literal["train", "dev", "test"]
Origin = Literal["scenario", "drills", "augmented"]
Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """`source` and `line` say where a person mends it; `weight` is its sampling weight in training. Conversations of
    one `group` (when it has a name) begin alike and are drawn together; of `call_only` ones only the choice of a call
    is trained, not the prose."""

    id: str
    source: str
    line: int
    category: str
    kind: Origin
    split: Split
    weight: float
    messages: tuple[Message, ...]
    group: str = ""
    call_only: bool = False


def to_jsonl(conversations: Iterable[Conversation]) -> str:
    """Equal conversations are equal bytes: keys sorted, no ASCII escapes."""
    return "".join(
        json.dumps(asdict(conversation), sort_keys=True, ensure_ascii=False) + "\n" for conversation in conversations
    )


def read_conversations(path: Path) -> list[Conversation]:
    """Read dataset.jsonl. Raises DataError naming the line that is not a conversation."""
    conversations = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                conversations.append(_conversation(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"this line is not a conversation: {error}",
                    where=f"{path}:{number}",
                    fix="remove the run's data folder and build it again",
                ) from error
    return conversations


def _conversation(value: dict[str, object]) -> Conversation:
    messages = value.pop("messages")
    if not isinstance(messages, list):
        raise TypeError("messages is not a list")
    conversation = Conversation(messages=tuple(_message(message) for message in messages), **value)  # type: ignore[arg-type]
    if conversation.split not in get_args(Split):
        raise ValueError(f"split is {conversation.split!r}")
    return conversation


def _message(value: dict[str, str]) -> Message:
    if value["role"] not in get_args(Role) or not isinstance(value["content"], str):
        raise ValueError(f"not a message: {value!r}")
    return Message(role=value["role"], content=value["content"])  # type: ignore[typeddict-item]
