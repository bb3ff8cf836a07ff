"""Characters and tokens that no training text may hold."""

from __future__ import annotations

import re

from pipeline.data.faults import Faults, shown
from pipeline.data.source import Source

_CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\uffff"
    "\ue000-\uf8ff\U000e0000-\U000e0fff\U000f0000-\U0010ffff]"
)
_TEMPLATE = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|<｜[^<>\n]{1,40}｜>"
    r"|</?(?:start_of_turn|end_of_turn|bos|eos|pad|unk|s|think|tool_call|tool_response|toolcall|start_of_image)>"
    r"|\[/?INST\]|<</?SYS>>",
    re.IGNORECASE,
)


def check_text(source: Source, faults: Faults) -> None:
    """Control and invisible characters, and the tokens of chat templates."""
    text = source.text
    for found in _CONTROL.finditer(text):
        line, column = _place(text, found.start())
        faults.add(line, column, "control", f"there is a control or invisible character U+{ord(found[0]):04X}")
        if len(faults.found) > 100:
            return
    for found in _TEMPLATE.finditer(text):
        line, column = _place(text, found.start())
        faults.add(line, column, "template", f"the text holds the template token {shown(found[0])}")
        if len(faults.found) > 100:
            return


def _place(text: str, offset: int) -> tuple[int, int]:
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)
