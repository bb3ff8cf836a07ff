"""The head of a GGUF file: its fields and where its tensors lie, read in one pass over the bytes.

The `gguf` package's reader makes several numpy views for every string; with a vocabulary of 262,144 tokens that takes
half a minute, this a hundredth of it. Format: GGUF version 3, little endian, as in ggml's specification.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Tensor:
    """`shape` is ggml's: the row length first. `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Head:
    """`places` says at which byte each field's value begins."""

    fields: dict[str, Any]
    places: dict[str, int]
    tensors: list[Tensor]


def read_head(path: Path) -> Head:
    """Fields (arrays as lists) and tensors. Raises PipelineError when the file is not a whole GGUF of version 3."""
    with _opened(path) as cursor:
        return cursor.head()


def architecture(path: Path) -> str:
    """general.architecture, without reading past it: it comes first, and vocabularies are long. Raises PipelineError
    when the file is no GGUF."""
    with _opened(path) as cursor:
        return str(next((value for name, _, value in cursor.fields() if name == "general.architecture"), "unknown"))


@contextmanager
def _opened(path: Path) -> Iterator[_Cursor]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield _Cursor(content)
    except (struct.error, UnicodeDecodeError, KeyError, IndexError, ValueError) as error:
        raise PipelineError(
            f"this is no readable GGUF file: {error}",
            where=str(path),
            fix="remove it and run again, so that it is made anew",
        ) from error


class _Cursor:
    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = self._count = 0

    def fields(self) -> Iterator[tuple[str, int, Any]]:
        """Each field's name, the byte at which its value begins, and its value."""
        if self._content[:4] != b"GGUF" or self._unpack("I", at=4) != 3:
            raise ValueError(f"it starts with {self._content[:8]!r}, not as version 3 does")
        self._at = 8
        self._count, pairs = self._unpack("Q"), self._unpack("Q")
        for _ in range(pairs):
            name, kind = self._string(), self._unpack("I")
            yield name, self._at, self._value(kind)

    def head(self) -> Head:
        fields: dict[str, Any] = {}
        places: dict[str, int] = {}
        for name, place, value in self.fields():
            fields[name], places[name] = value, place
        found = [self._tensor() for _ in range(self._count)]
        alignment = fields.get("general.alignment", 32)
        start = -(-self._at // alignment) * alignment
        return Head(fields, places, [Tensor(name, shape, kind, start + offset) for name, shape, kind, offset in found])

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._string(), self._unpack("I")
        shape = tuple(self._unpack("Q") for _ in range(dimensions))
        return name, shape, self._unpack("I"), self._unpack("Q")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._unpack(_SCALARS[kind])
        inner, length = self._unpack("I"), self._unpack("Q")
        if inner in (_STRING, _ARRAY):
            return [self._value(inner) for _ in range(length)]
        code = f"<{length}{_SCALARS[inner]}"
        values = list(struct.unpack_from(code, self._content, self._at))
        self._at += struct.calcsize(code)
        return values

    def _string(self) -> str:
        length = self._unpack("Q")
        self._at += length
        return self._content[self._at - length : self._at].decode("utf-8")

    def _unpack(self, code: str, at: int | None = None) -> Any:
        value = struct.unpack_from(f"<{code}", self._content, self._at if at is None else at)[0]
        if at is None:
            self._at += struct.calcsize(code)
        return value
