"""A GBNF grammar for llama.cpp's sampler: free prose, then at most one legal call as the last line.

Made from the vocabulary, so that a new tool is in the grammar as soon as it is in tools.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from pipeline.data.dataset import Message
from pipeline.data.tools import Form, Slot, Vocabulary, load_vocabulary
from pipeline.game import party

_LETTERS = "0-9A-Za-z\\u00C0-\\u00D6\\u00D8-\\u00F6\\u00F8-\\u024F"  # with the accents that names have
_WORD = f"[{_LETTERS}]"
_SIGNS = "'’.:;!?()/&+-"  # narrower than what the app accepts: no sampler should write control characters
_SLOT = re.compile(r"\{(\w+)\}")
_HEAD = """# Made by dm-forge from training_data/tools.yaml. Free prose, then at most one legal call as the last line.
root ::= prose | (prose "\\n")? call
prose ::= [^\\[\\]]*
"""


def grammar(names: Sequence[str], vocabulary: Vocabulary | None = None) -> str:
    """GBNF for a table with these party members; what a slot lists besides them ("player") is legal too."""
    known = vocabulary or load_vocabulary()
    rules = [f"call ::= {' | '.join(_rule('tool', tool.name) for tool in known.tools)}"]
    used: dict[str, None] = {}  # in the order of their first use
    for tool in known.tools:
        forms = " | ".join(_form(form, known) for form in tool.forms)
        rules.append(f'{_rule("tool", tool.name)} ::= "[{tool.name}: " ({forms}) "]"')
        used |= dict.fromkeys(slot for form in tool.forms for slot in form.slots)
    rules += [f"{_rule('slot', slot)} ::= {_slot(known.slots[slot], names)}" for slot in used]
    return _HEAD + "\n".join(rules) + "\n"


def for_messages(messages: Sequence[Message]) -> str:
    """The grammar for a conversation: its party stands in the system message."""
    return grammar([member.name for member in party(messages[0]["content"])])


def number(low: int, high: int) -> str:
    """GBNF for the integers low…high without leading zeros (0 ≤ low ≤ high)."""
    parts = []
    while low <= high:
        end = min(high, 10 ** len(str(low)) - 1)  # one length of number at a time
        parts += _range(str(low), str(end))
        low = end + 1
    return " | ".join(parts)


def _range(low: str, high: str) -> list[str]:
    """Alternatives for the numbers between two of the same length."""
    if not low:
        return [""]
    if low[0] == high[0]:
        return [f'"{low[0]}" {rest}'.strip() for rest in _range(low[1:], high[1:])]
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return [f"[{low[0]}-{high[0]}]" + " [0-9]" * len(low[1:])]
    nines, zeros = "9" * len(low[1:]), "0" * len(low[1:])
    parts = [f'"{low[0]}" {rest}' for rest in _range(low[1:], nines)]
    if int(high[0]) - int(low[0]) > 1:
        parts.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}]" + " [0-9]" * len(nines))
    return parts + [f'"{high[0]}" {rest}' for rest in _range(zeros, high[1:])]


def _form(form: Form, vocabulary: Vocabulary) -> str:
    parts = _SLOT.split(form.call)
    return " ".join(_rule("slot", part) if at % 2 else _literal(part) for at, part in enumerate(parts) if part)


def _slot(slot: Slot, names: Sequence[str]) -> str:
    makers: dict[str, Callable[[], str]] = {
        "choice": lambda: _choice(slot.values),
        "party": lambda: _choice(dict.fromkeys((*names, *slot.values))),
        "integer": lambda: number(slot.minimum, slot.maximum),
        "text": lambda: f"{_WORD} ([{_LETTERS} {_SIGNS}]{{0,{slot.length - 2}}} [{_LETTERS}{_SIGNS}])?",
        "dice": lambda: (
            f'({number(1, slot.count)}) "d" ({_choice(map(str, slot.sides))}) ([+-] ({number(1, slot.bonus)}))?'
        ),
    }
    return makers[slot.kind]()


def _choice(values: Iterable[str]) -> str:
    return " | ".join(_literal(value) for value in values)


def _literal(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _rule(kind: str, name: str) -> str:
    return f"{kind}-{name.replace('_', '-')}"
