"""The tool vocabulary (training_data/tools.yaml) and the calls found in a text.

The vocabulary is data: whoever needs the names, the argument grammar or the results reads it from here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from pipeline.errors import DataError

VOCABULARY = Path(__file__).parents[2] / "training_data" / "tools.yaml"
SlotKind = Literal["choice", "party", "integer", "text", "dice", "d20", "modifier", "faces", "total"]
_CALL = re.compile(r"\[(\w+):([^\]]+)\]", re.ASCII)  # the app's own pattern
_SHAPES = {
    "party": r"[^\s,:\[\]](?:[^,:\[\]\n]*[^\s,:\[\]])?",
    "integer": r"[1-9][0-9]{0,8}|0",
    "text": r"[^\W_](?:[^,\[\]\n]*[^\s,\[\]])?",
    "dice": r"[1-9][0-9]{0,3}d[1-9][0-9]{0,3}(?:[+-][1-9][0-9]{0,3})?",
    "d20": r"[0-9]{1,9}",
    "modifier": r"-?[0-9]{1,9}",
    "faces": r"-?[0-9]{1,9}(?: \+ -?[0-9]{1,9})*",
    "total": r"-?[0-9]{1,9}",
}
_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"[^\W_]+")
_STOP_WORDS = frozenset(
    {"a", "an", "and", "the", "of", "for", "with", "from", "in", "on", "to", "my", "his", "her", "your", "some"}
)


@dataclass(frozen=True, slots=True)
class Call:
    """A command as the app finds it: the tool in lower case, the arguments trimmed; `start` and `end` are offsets."""

    tool: str
    arguments: str
    start: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"[{self.tool}: {self.arguments}]"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Slot(_Strict):
    """What may stand in one place of a call or a result; tools.yaml explains the kinds."""

    kind: SlotKind
    values: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = 0
    length: int = 0
    sides: tuple[int, ...] = ()
    count: int = 0
    bonus: int = 0
    loose: bool = False

    @property
    def pattern(self) -> str:
        """A regular expression for the slot's shape; what needs the party or arithmetic is checked elsewhere."""
        return "|".join(map(re.escape, self.values)) if self.kind == "choice" else _SHAPES[self.kind]


class Form(_Strict):
    """One way to write a tool's arguments, and the TOOLCALL that answers it."""

    name: str
    call: str
    result: str
    outcome: Literal["check", "none"] = "none"
    hit_points: Literal["gain", "loss", "none"] = "none"

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the slots in the call, in order."""
        return tuple(_SLOT.findall(self.call))

    def write_call(self, values: dict[str, str]) -> str:
        return _fill(self.call, values)

    def write_result(self, values: dict[str, str]) -> str:
        return _fill(self.result, values)


class Example(_Strict):
    call: str
    result: str


class Tool(_Strict):
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    description: str
    forms: tuple[Form, ...] = Field(min_length=1)
    examples: tuple[Example, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Matched:
    """A call that fits the vocabulary: its form, and what stands in its slots."""

    tool: Tool
    form: Form
    values: dict[str, str]


class Vocabulary(_Strict):
    slots: dict[str, Slot]
    tools: tuple[Tool, ...]
    _compiled: dict[str, re.Pattern[str]] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _coherent(self) -> Vocabulary:
        names = [tool.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError(f"a tool is listed twice: {', '.join(names)}")
        for tool in self.tools:
            for form in tool.forms:
                unknown = {*_SLOT.findall(form.call), *_SLOT.findall(form.result)} - set(self.slots)
                if unknown:
                    raise ValueError(f"{tool.name}/{form.name} uses unknown slots: {', '.join(sorted(unknown))}")
            for example in tool.examples:
                if not self._fits(tool, example):
                    raise ValueError(
                        f"{tool.name}: the example {example.call} → {example.result} fits none of its forms"
                    )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tool.name for tool in self.tools)

    def tool(self, name: str) -> Tool | None:
        return next((tool for tool in self.tools if tool.name == name), None)

    def match(self, call: Call) -> Matched | None:
        """The form that the call has, or None where the tool or its arguments are unknown."""
        tool = self.tool(call.tool)
        for form in tool.forms if tool else ():
            found = compile_template(form.call, self).fullmatch(call.arguments)
            if tool and found and self._within(found.groupdict()):
                return Matched(tool, form, found.groupdict())
        return None

    def match_result(self, matched: Matched, text: str) -> dict[str, str] | None:
        """What stands in the slots of a TOOLCALL that answers `matched`, or None where it has another form."""
        found = compile_template(matched.form.result, self).fullmatch(text)
        return found.groupdict() if found else None

    def expansions(self, form: Form) -> list[str]:
        """Every concrete call of a form that consists of choices only ("dexterity save"), else nothing."""
        slots = [self.slots[name] for name in form.slots]
        if any(slot.kind != "choice" for slot in slots):
            return []
        choices = product(*(slot.values for slot in slots))
        return [form.write_call(dict(zip(form.slots, values, strict=True))) for values in choices]

    def _within(self, values: dict[str, str]) -> bool:
        return all(_slot_holds(self.slots[name], value) for name, value in values.items())

    def _fits(self, tool: Tool, example: Example) -> bool:
        calls = find_calls(example.call)
        matched = self.match(calls[0]) if len(calls) == 1 and calls[0].tool == tool.name else None
        return matched is not None and self.match_result(matched, example.result) is not None


def load_vocabulary(path: Path = VOCABULARY) -> Vocabulary:
    """Read a tools.yaml. Raises DataError naming what is wrong with it."""
    try:
        return _load(path.resolve(), path.stat().st_mtime_ns)
    except OSError as error:
        raise DataError(f"the vocabulary cannot be read: {error}", where=str(path), fix="restore tools.yaml") from error


@lru_cache(maxsize=8)
def _load(path: Path, modified: int) -> Vocabulary:
    try:
        return Vocabulary.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        raise DataError(f"the vocabulary has faults: {error}", where=str(path), fix="see its first lines") from error


def find_calls(text: str) -> list[Call]:
    """The commands that the app finds in a text, in order."""
    return [Call(found[1].lower(), found[2].strip(), found.start(), found.end()) for found in _CALL.finditer(text)]


def calls_match(gold: Sequence[Call], found: Sequence[Call], vocabulary: Vocabulary | None = None) -> bool:
    """True when `found` is the gold list. Slots marked loose (items) may differ in wording when they share a word."""
    if len(gold) != len(found):
        return False
    known = vocabulary or load_vocabulary()
    return all(_same(one, other, known) for one, other in zip(gold, found, strict=True))


def compile_template(template: str, vocabulary: Vocabulary) -> re.Pattern[str]:
    """A pattern with one named group for each slot of a template such as "{name}, +{amount}"."""
    known = vocabulary._compiled
    if template not in known:
        known[template] = _compile(template, vocabulary)
    return known[template]


def _compile(template: str, vocabulary: Vocabulary) -> re.Pattern[str]:
    seen: set[str] = set()
    parts = []
    for index, part in enumerate(_SLOT.split(template)):
        if index % 2 == 0:
            parts.append(re.escape(part))
        else:
            parts.append(f"(?P={part})" if part in seen else f"(?P<{part}>{vocabulary.slots[part].pattern})")
            seen.add(part)
    return re.compile("".join(parts))


def _fill(template: str, values: dict[str, str]) -> str:
    return _SLOT.sub(lambda found: values[found[1]], template)


def _slot_holds(slot: Slot, value: str) -> bool:
    if slot.kind == "integer":
        return slot.minimum <= int(value) <= slot.maximum
    if slot.kind == "text":
        return len(value) <= slot.length
    if slot.kind == "dice":
        count, sides, bonus = parse_dice(value)
        return count <= slot.count and sides in slot.sides and abs(bonus) <= slot.bonus
    return True


def parse_dice(formula: str) -> tuple[int, int, int]:
    """Give (2, 6, 3) for 2d6+3. The formula must have a dice slot's shape."""
    count, _, rest = formula.partition("d")
    sides = re.match(r"[0-9]+", rest)
    width = sides.end() if sides else 0
    return int(count), int(rest[:width]), int(rest[width:] or 0)


def _same(gold: Call, found: Call, vocabulary: Vocabulary) -> bool:
    if gold == found:
        return True
    one, other = vocabulary.match(gold), vocabulary.match(found)
    if gold.tool != found.tool or one is None or other is None or one.form != other.form:
        return False
    return all(
        value == other.values[name] or (vocabulary.slots[name].loose and share_word(value, other.values[name]))
        for name, value in one.values.items()
    )


def share_word(one: str, other: str) -> bool:
    """True when two phrases have a content word in common."""
    return bool(content_words(one) & content_words(other))


def content_words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.casefold()) if word not in _STOP_WORDS}
