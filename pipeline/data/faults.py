"""A fault in training data: where it is, what is wrong, why that matters and how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.data.rules import RULES

Severity = Literal["error", "warning"]
MAX_PER_FILE = 200  # a hostile file must not fill the memory with complaints about it


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """`line` and `column` count from one; `code` is the rule's name in pipeline.data.rules."""

    path: str
    line: int
    column: int
    code: str
    what: str
    why: str
    fix: str
    severity: Severity = "error"

    def __str__(self) -> str:
        level = "" if self.severity == "error" else f"{self.severity}: "
        return f"{self.path}:{self.line}:{self.column}: {level}{self.what}; {self.why}; {self.fix}"


class Faults:
    """Collects one file's faults. A rule knows why and how to mend; only `what` (and a better `fix`) is said here."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: list[Fault] = []

    def add(self, line: int, column: int, code: str, what: str, fix: str | None = None) -> None:
        if len(self.found) == MAX_PER_FILE:
            code, what, fix = "more", f"there are more faults than the {MAX_PER_FILE} listed", None
        if len(self.found) <= MAX_PER_FILE:
            rule = RULES[code]
            what, fix = _on_one_line(what), _on_one_line(fix or rule.fix)
            self.found.append(Fault(self.path, line, column, code, what, rule.why, fix, rule.severity))


def _on_one_line(text: str) -> str:
    """A call may be spelt over several lines; a fault is always one."""
    return " ".join(text.splitlines())


def errors(faults: Iterable[Fault]) -> list[Fault]:
    return [fault for fault in faults if fault.severity == "error"]


def shown(text: str, length: int = 60) -> str:
    """A value for a message: quoted, on one line, never long, control characters escaped."""
    return repr(text if len(text) <= length else text[:length] + "…")
