"""From a scenario to what the model sees: chat messages, token ids, and which of those ids carry loss.

The base's own chat template renders the messages. A training sample is exactly what the app's runtime would tokenise:
the whole rendered text in one go. Only two things are added: which tokens are the assistant's, and the promise that
template tokens written *inside* a message stay text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from pipeline.data.dataset import Message
from pipeline.data.scenario import Kind, Scenario, Turn
from pipeline.data.tools import find_calls
from pipeline.errors import BaseModelError, DataError

IGNORED = -100
_DATE = "26 Jul 2024"  # Llama's templates write today's date into the prompt; training must not depend on the day
_TEMPLATE_TOKENS: WeakKeyDictionary[Any, tuple[frozenset[int], re.Pattern[str]]] = WeakKeyDictionary()


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer; it must be a fast one (offsets)."""

    chat_template: Any
    name_or_path: str
    bos_token_id: int | None
    added_tokens_decoder: Mapping[int, Any]

    def __call__(
        self, text: str, *, add_special_tokens: bool = ..., return_offsets_mapping: bool = ...
    ) -> Mapping[str, list[Any]]: ...

    def apply_chat_template(
        self, conversation: list[dict[str, object]], *, tokenize: bool, add_generation_prompt: bool, date_string: str
    ) -> object: ...


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation as the model reads it. `supervised[i]` says whether predicting `ids[i]` is trained;
    `decisive[i]`, whether it belongs to the choice of a call: the call itself, or the end of a turn without one."""

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    decisive: tuple[bool, ...]

    @property
    def labels(self) -> list[int]:
        """The ids where they are supervised, -100 elsewhere; not shifted."""
        return [token if wanted else IGNORED for token, wanted in zip(self.ids, self.supervised, strict=True)]


@dataclass(frozen=True, slots=True)
class _Span:
    role: str
    start: int
    end: int


def messages_of(scenario: Scenario) -> tuple[Message, ...]:
    """The scenario as chat messages: system, then user and assistant in turn; a TOOLCALL speaks as the user."""
    return (Message(role="system", content=scenario.system()), *(message_of(turn) for turn in scenario.turns))


def message_of(turn: Turn) -> Message:
    if turn.kind is Kind.DM:
        return Message(role="assistant", content=turn.text)
    text = f"<TOOLCALL>{turn.text}</TOOLCALL>" if turn.kind is Kind.TOOLCALL else turn.text
    return Message(role="user", content=text)


def render_text(tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool = False) -> str:
    """The messages through the tokenizer's own chat template, as text."""
    if not tokenizer.chat_template:
        raise BaseModelError(
            "the base has no chat template", where=str(tokenizer.name_or_path), fix="use an instruction-tuned base"
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=generation_prompt,
            date_string=_DATE,
        )
    except Exception as error:  # templates raise what they like (jinja2's TemplateError above all)
        raise BaseModelError(
            f"the base's chat template refuses the conversation: {error}",
            where=str(tokenizer.name_or_path),
            fix="use a base whose template takes system, user and assistant messages in turn",
        ) from error
    return str(text)


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[int, ...]:
    """Ids of the messages and the generation prompt: what the model is given when it is the DM's turn to speak."""
    text, spans = _locate(tokenizer, messages, generation_prompt=True)
    return tuple(token for token, _, _ in _tokenise(tokenizer, text, spans))


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> Rendered:
    """Ids of a whole conversation, loss on the assistant's own tokens and each of its end-of-turn tokens.

    Raises DataError where nothing or everything would be supervised, or a message's edge falls inside a token, and
    BaseModelError where the template does not show the messages as they are.
    """
    text, spans = _locate(tokenizer, messages)
    tokens = _tokenise(tokenizer, text, spans)
    starts = [start for _, start, _ in tokens]
    supervised, decisive = [False] * len(tokens), [False] * len(tokens)
    for span in spans:
        if span.role == "assistant":
            turn = _supervised(tokenizer, tokens, starts, span)
            call = _call_start(text[span.start : span.end]) + span.start
            for index in turn:
                supervised[index] = True
                decisive[index] = tokens[index][2] > call
    if not any(supervised) or all(supervised):
        share = "all" if any(supervised) else "none"
        raise DataError(
            f"{share} of the conversation's {len(tokens)} tokens would carry loss",
            fix="a conversation needs at least one user and one DM turn; check the base's chat template",
        )
    return Rendered(tuple(token for token, _, _ in tokens), tuple(supervised), tuple(decisive))


def _locate(
    tokenizer: Tokenizer, messages: Sequence[Message], generation_prompt: bool = False
) -> tuple[str, list[_Span]]:
    """The rendered text and where each message's content lies in it.

    Found by rendering stand-ins that occur nowhere else, so a message that quotes another is no trouble. The result
    must be the very text that the real messages give.
    """
    stand_ins = [f"\ue000{index}\ue001" for index in range(len(messages))]
    shadow = render_text(
        tokenizer,
        [Message(role=message["role"], content=mark) for message, mark in zip(messages, stand_ins, strict=True)],
        generation_prompt,
    )
    parts: list[str] = []
    spans: list[_Span] = []
    rest, length = shadow, 0
    for message, mark in zip(messages, stand_ins, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise BaseModelError(f"the base's chat template leaves out a {message['role']} message", fix="use another")
        start = length + len(before)
        length = start + len(message["content"])
        parts += [before, message["content"]]
        spans.append(_Span(message["role"], start, length))
    text = "".join([*parts, rest])
    if text != render_text(tokenizer, messages, generation_prompt):
        raise DataError(
            "the base's chat template changes the messages' text (blanks at an edge, or a tag that it interprets)",
            fix="take blanks at the edges and tags such as </think> out of the text",
        )
    return text, spans


def _tokenise(tokenizer: Tokenizer, text: str, spans: list[_Span]) -> list[tuple[int, int, int]]:
    """(id, start, end) of each token. The text is tokenised whole, as the runtime does it, save that a template token
    which a message spells out is cut in two, so that it can never become one."""
    cuts = [0, *_cuts(tokenizer, text, spans), len(text)]
    tokens: list[tuple[int, int, int]] = []
    for start, end in pairwise(cuts):
        encoded = tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True)
        tokens += [
            (token, start + first, start + last)
            for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]
    opening = tokenizer("", add_special_tokens=True)["input_ids"]
    if opening and opening[0] == tokenizer.bos_token_id and (not tokens or tokens[0][0] != opening[0]):
        tokens.insert(0, (opening[0], 0, 0))  # the runtime adds it too where the template does not
    return tokens


def _cuts(tokenizer: Tokenizer, text: str, spans: list[_Span]) -> list[int]:
    """Offsets just inside every template token that a message spells out, wholly or in part."""
    found = set()
    for match in _template_tokens(tokenizer)[1].finditer(text):
        start, end = match.start(), match.end(1)
        if end - start > 1 and any(span.start < end and start < span.end for span in spans):
            found.add(start + 1)
    return sorted(found)


def _template_tokens(tokenizer: Tokenizer) -> tuple[frozenset[int], re.Pattern[str]]:
    """The template tokens: their ids, and a pattern that finds them, overlapping ones too. Added tokens that are not
    special, such as Gemma's runs of line ends and of blanks, are text like any other."""
    if tokenizer not in _TEMPLATE_TOKENS:
        special = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        longest_first = sorted(special, key=len, reverse=True)
        pattern = "(?=(" + "|".join(map(re.escape, longest_first)) + "))" if longest_first else r"(?!)()"
        _TEMPLATE_TOKENS[tokenizer] = frozenset(special.values()), re.compile(pattern)
    return _TEMPLATE_TOKENS[tokenizer]


def _call_start(turn: str) -> int:
    """Where a DM turn's call begins, the blank line before it included; its end where it has none."""
    calls = find_calls(turn)
    return len(turn[: calls[0].start].rstrip()) if calls else len(turn)


def _supervised(tokenizer: Tokenizer, tokens: list[tuple[int, int, int]], starts: list[int], span: _Span) -> range:
    """The tokens of a DM turn, its end-of-turn token included."""
    first = bisect_left(starts, span.start)
    after = bisect_left(starts, span.end, lo=first)
    if (first and tokens[first - 1][2] > span.start) or (after > first and tokens[after - 1][2] > span.end):
        raise DataError(
            "a token reaches over the edge of a DM turn", fix="begin and end DM turns with a letter or a bracket"
        )
    if after >= len(tokens) or tokens[after][0] not in _template_tokens(tokenizer)[0]:
        raise BaseModelError(
            "the base's chat template does not end the assistant's turn with a token of its own",
            where=str(tokenizer.name_or_path),
            fix="use a base whose template has an end-of-turn token; without one replies never stop",
        )
    return range(first, after + 1)
