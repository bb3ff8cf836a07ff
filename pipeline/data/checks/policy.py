"""Is the call the one that is due? Only warnings: words are evidence, not proof."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from pipeline.data.checks.turns import Step
from pipeline.data.faults import Faults, shown
from pipeline.data.scenario import Kind, Scenario, Turn
from pipeline.data.tools import VOCABULARY, Vocabulary, content_words
from pipeline.errors import DataError

POLICY = VOCABULARY.with_name("policy.yaml")
_SPEECH = re.compile(r"\"[^\"\n]*\"|“[^”\n]*”")
_SELF = re.compile(r"\b(?:I|me|my|mine|myself|we|us|our|i'm|i|I'm|I'll|I've)\b")
_COUNTING = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_TEENS = ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty")
_NUMBERS = {word: str(number) for number, word in enumerate([*_COUNTING, *_TEENS])} | {"plus": "+", "minus": "-"}
_NUMBERS |= {"sixes": "6"} | {
    f"{word}s": number for word, number in _NUMBERS.items() if word in ("four", "eight", "ten")
}
_NUMBER_WORD = re.compile(r"\b(?:" + "|".join(_NUMBERS) + r")\b")
_DICE_WORD = re.compile(r"\b(?:[0-9]* ?d ?[0-9]+|[0-9]+-side(?:d|rs?)|dice|die)\b")
_RECENT = 4  # turns within which a "he" still means who was named


@dataclass(frozen=True, slots=True)
class Cue:
    """Words that settle which calls may be due."""

    calls: tuple[str, ...]
    pattern: re.Pattern[str]


@lru_cache(maxsize=8)
def _any_cue(path: Path = POLICY) -> re.Pattern[str]:
    """All cues at once: most lines have none."""
    return re.compile("|".join(cue.pattern.pattern for cue in load_policy(path)), re.IGNORECASE)


@lru_cache(maxsize=8)
def load_policy(path: Path = POLICY) -> tuple[Cue, ...]:
    """Read policy.yaml. Raises DataError where it is not a list of calls and cues."""
    try:
        rules = yaml.safe_load(path.read_text(encoding="utf-8"))
        return tuple(
            Cue(tuple(rule["calls"]), re.compile(r"\b(?:" + "|".join(rule["cues"]) + r")\b", re.IGNORECASE))
            for rule in rules
        )
    except (OSError, yaml.YAMLError, TypeError, KeyError, re.error) as error:
        raise DataError(
            f"the policy cannot be read: {error}", where=str(path), fix="see the comment at its top"
        ) from error


def check_policy(scenario: Scenario, steps: list[Step], vocabulary: Vocabulary, faults: Faults) -> None:
    """Contradicting cues, arguments that nobody has said, and names that nobody has called."""
    for step in steps:
        before = scenario.turns[: step.index]
        previous = before[-1] if before else None
        if previous is None:
            continue
        line = step.turn.last_line
        if previous.kind is Kind.USER:
            check_cues(previous.text, str(step.call)[1:-1], line, faults)
            _whose(scenario, previous, "\n".join(turn.text for turn in before[-_RECENT:]), step, faults)
        said = "\n".join(turn.text for turn in before)
        recent = "\n".join(turn.text for turn in before[-_RECENT:])
        check_said(step.matched.values, said, recent, vocabulary, line, faults)


def check_cues(player: str, call: str, line: int, faults: Faults) -> None:
    """Warn where the player's line settles on other calls. `call` is written "roll: stealth"."""
    if not call.startswith(("roll:", "check:")) or "save" in call or re.search(r"\d", call):
        return
    if not _any_cue().search(player):
        return
    spoken = _SPEECH.sub('""', player)
    hits = [(cue, found) for cue in load_policy() if (found := cue.pattern.search(spoken))]
    if hits and not any(call in cue.calls for cue, _ in hits):
        cue, found = hits[0]
        faults.add(line, 1, "policy", f"the player's {shown(found[0])} calls for [{cue.calls[0]}], not [{call}]")


def check_said(
    values: dict[str, str], before: str, recent: str, vocabulary: Vocabulary, line: int, faults: Faults
) -> None:
    """Warn about dice, items and spells that no turn before has named, and numbers that no recent one has."""
    for name, value in values.items():
        kind = vocabulary.slots[name].kind
        if kind == "integer" and not re.search(rf"(?<!\d){value}(?!\d)", _digits(recent)):
            faults.add(line, 1, "unsaid", f"none of the last turns says {value}")
        elif kind == "dice" and not _dice_said(value, before):
            faults.add(line, 1, "unsaid", f"no turn before names {value}")
        elif kind == "text":
            missing = [word for word in sorted(content_words(value)) if _stem(word) not in before.casefold()]
            if missing:
                faults.add(line, 1, "unsaid", f"{shown(value)}: no turn before says {', '.join(missing)}")


def _digits(text: str) -> str:
    """The text with its number words as digits: "two d six plus three" gives "2 d 6 + 3"."""
    return _NUMBER_WORD.sub(lambda word: _NUMBERS[word[0]], text.casefold())


def _dice_said(formula: str, before: str) -> bool:
    """Whether the text names the formula: as it is written, or as dice in words with each of its numbers."""
    digits = _digits(before)
    said = re.sub(r"\s", "", digits)
    if formula in said or (formula.startswith("1d") and formula[1:] in said):
        return True
    wanted = set(re.findall(r"[0-9]+", formula.removeprefix("1d")))
    return bool(_DICE_WORD.search(digits)) and wanted <= set(re.findall(r"[0-9]+", digits))


def _stem(word: str) -> str:
    for ending in ("ies", "es", "s", "y"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word[: -len(ending)]
    return word


def _whose(scenario: Scenario, said: Turn, recent: str, step: Step, faults: Faults) -> None:
    name = step.matched.values.get("name")
    if name is None:
        return
    if len(scenario.names) == 1:
        if name == "player":
            faults.add(
                step.turn.last_line, 1, "whose", f"the party is {scenario.names[0]} alone, the call says `player`"
            )
        return
    named = [member for member in scenario.names if _mentions(said.text, member)]
    speaks_of_self = bool(_SELF.search(_SPEECH.sub("", said.text)))
    if name == "player" and len(named) == 1 and not speaks_of_self:
        faults.add(step.turn.last_line, 1, "whose", f"the player's line names {named[0]}, the call `player`")
    elif name != "player" and name in scenario.names and not _mentions(recent, name):
        faults.add(step.turn.last_line, 1, "whose", f"none of the last turns names {name}")


def _mentions(text: str, name: str) -> bool:
    folded = text.casefold()
    return any(part.casefold() in folded for part in name.split() if len(part) > 2) or name.casefold() in folded
