"""Faults planted into a copy of a GGUF: what a careless export would have written."""

import mmap
import shutil
import struct
from pathlib import Path
from typing import Any

from pipeline.gguf_file import read_head


def copy(gguf: Path, folder: Path) -> Path:
    return Path(shutil.copy(gguf, folder / f"planted-{gguf.name}"))


def set_number(gguf: Path, key: str, code: str, value: Any, skip: int = 0) -> None:
    """Overwrite a number or a truth value in place; `skip` bytes into the field for an element of an array."""
    with gguf.open("r+b") as file:
        file.seek(read_head(gguf).places[key] + skip)
        file.write(struct.pack(f"<{code}", value))


def replace_text(gguf: Path, old: bytes, new: bytes, count: int = 1) -> None:
    """Overwrite bytes (a name, a piece of the template) by as many others, at their first `count` places."""
    assert len(old) == len(new)
    with gguf.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        at = -1
        for _ in range(count):
            at = content.find(old, at + 1)
            assert at >= 0, old
            content[at : at + len(old)] = new


def exchange(gguf: Path, one: str, other: str) -> None:
    """Give each of two tensors of one shape the other's name."""
    mark = one[:-1] + "#"
    for old, new in ((one, mark), (other, one), (mark, other)):
        replace_text(gguf, old.encode(), new.encode())


def zero(gguf: Path, name: str) -> None:
    tensors = sorted(read_head(gguf).tensors, key=lambda tensor: tensor.offset)
    at = next(index for index, tensor in enumerate(tensors) if tensor.name == name)
    with gguf.open("r+b") as file:
        file.seek(tensors[at].offset)
        file.write(bytes(tensors[at + 1].offset - tensors[at].offset))
