"""Does the narration agree with the SYSTEM block and the TOOLCALLs, and does it stay in the game?

Both checks are deliberately narrow: they report what can be proven from the text, so that good prose scores zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pipeline.data.dataset import Message
from pipeline.data.tools import find_calls, load_vocabulary
from pipeline.game import Member, party, toolcall_text
from pipeline.validation.prose import without_calls

_RACES = "dragonborn|dwarf|elf|half-elf|gnome|goblin|halfling|half-orc|human|orc|tiefling|aasimar|goliath|tabaxi|kenku"
_CLASSES = "artificer|barbarian|bard|cleric|druid|fighter|monk|paladin|ranger|rogue|sorcerer|warlock|wizard"
_CLAIMS = (
    re.compile(r"\blevel (\d+)\b", re.IGNORECASE),
    re.compile(r"\b(\d+) (?:hit points?|HP\b|points? of (?:damage|healing)|damage\b)", re.IGNORECASE),
    re.compile(r"\broll(?:s|ed)?(?: of| an?| is| was){0,2} (\d+)(?!d?\d)\b", re.IGNORECASE),
    re.compile(r"\btotal(?: of| is| was){0,2} (\d+)\b", re.IGNORECASE),
)
_LEAKS = {
    "template token": re.compile(r"<\|?/?(?:im_start|im_end|start_of_turn|end_of_turn|eot_id|endoftext|bos|eos|s)\|?>"),
    "a result of its own": re.compile(r"</?TOOLCALL>|^#* ?TOOLCALL\b", re.MULTILINE),
    "a speaker's label": re.compile(
        r"^(?:#+ |\*\*)?(?:user|player|dm|dungeon master|assistant|system)(?:\*\*)?:", re.IGNORECASE | re.MULTILINE
    ),
    "a heading": re.compile(r"^#{1,4} ", re.MULTILINE),
    "talk of being a program": re.compile(
        r"\b(?:as an AI|AI (?:language )?(?:model|assistant)|language model|I(?:'m| am) (?:sorry, but I|unable to)|I (?:cannot|can't) (?:assist|help|fulfil))",
        re.IGNORECASE,
    ),
}
_AMOUNT = re.compile(r"(?:increased|reduced) by (\d+)")


def contradictions(text: str, history: Sequence[Message]) -> tuple[str, ...]:
    """Names and numbers in a reply that the SYSTEM block or the TOOLCALLs before it contradict, in words."""
    members = party(history[0]["content"]) if history and history[0]["role"] == "system" else ()
    shown = without_calls(text)
    return (*_strangers(text, members), *_wrong_people(shown, members), *_wrong_numbers(shown, history, members))


def leaks(text: str) -> tuple[str, ...]:
    """Ways in which a reply falls out of the game, in words."""
    return tuple(f"{what}: {found[0].strip()}" for what, pattern in _LEAKS.items() if (found := pattern.search(text)))


def _strangers(text: str, members: Sequence[Member]) -> Iterator[str]:
    vocabulary = load_vocabulary()
    names = {member.name for member in members}
    for call in find_calls(text):
        matched = vocabulary.match(call)
        for slot, value in matched.values.items() if matched else ():
            kind = vocabulary.slots[slot]
            if kind.kind == "party" and value not in names and value not in kind.values:
                yield f"{call} names {value}, who is not in the party"


def _wrong_people(shown: str, members: Sequence[Member]) -> Iterator[str]:
    """'Elara the dwarf' where the SYSTEM block says elf."""
    for member in members:
        name = re.escape(member.name)
        pattern = rf"\b{name},? the ({_RACES}|{_CLASSES})\b|\bthe ({_RACES}|{_CLASSES}),? {name}(?=[.,;:!?]|$)"
        for found in re.finditer(pattern, shown, re.IGNORECASE):
            said = (found[1] or found[2]).lower()
            if said not in member.about.lower():
                yield f"{member.name} is called a {said}; the SYSTEM block says {member.about}"


def _wrong_numbers(shown: str, history: Sequence[Message], members: Sequence[Member]) -> Iterator[str]:
    known = _known_numbers(history, members)
    for pattern in _CLAIMS:
        for found in pattern.finditer(shown):
            if int(found[1]) not in known:
                yield f"“{found[0]}” agrees with no number before it"


def _known_numbers(history: Sequence[Message], members: Sequence[Member]) -> set[int]:
    """Every number said so far, and hit points after each change that a TOOLCALL reports."""
    said = "\n".join(message["content"] for message in history)
    known = {int(number) for number in re.findall(r"\d+", said)}
    results = [result for message in history if (result := toolcall_text(message["content"]))]
    for member in members:
        points = member.hit_points
        for result in results if points else ():
            change = _AMOUNT.search(result)
            if change and points and member.name in result:
                now = points[0] + int(change[1]) * (1 if "increased" in result else -1)
                points = (max(0, min(now, points[1])), points[1])
                known.add(points[0])
    return known
