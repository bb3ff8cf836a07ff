"""Finding and reading files that anybody may have written: bounded in size, inside their folder, plain UTF-8."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.faults import Faults

MAX_BYTES = 1 << 20
MAX_LINES = 20_000
MAX_LINE = 8_000  # characters
_BOM = b"\xef\xbb\xbf"
_NOT_DATA = frozenset({"README.md"})


@dataclass(frozen=True, slots=True)
class Source:
    """A file's text, its lines without their ends, and the name it has in messages."""

    path: str
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file to read: `name` for messages, `root` the folder it may not leave."""

    path: Path
    name: str
    root: Path


def discover(paths: list[Path]) -> Iterator[Entry]:
    """Every markdown file below the paths, in sorted order, one at a time. Nothing is opened and no link followed."""
    for path in paths:
        if path.is_dir():
            yield from _walk(path)
        else:
            yield Entry(path, str(path), path.parent)


def _walk(root: Path) -> Iterator[Entry]:
    folders = [root]
    while folders:
        folder = folders.pop()
        below: list[Path] = []
        with os.scandir(folder) as scan:
            entries = sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in scan)
        for name, is_folder, is_link in entries:
            path = folder / name
            if is_folder and not name.startswith("."):
                below.append(path)
            elif (name.endswith(".md") and not (folder == root and name in _NOT_DATA)) or (is_link and path.is_dir()):
                yield Entry(path, str(path), root)
        folders.extend(reversed(below))


def read(entry: Entry, faults: Faults) -> Source | None:
    """The file's text, or None with the reason in `faults`. Never reads more than MAX_BYTES."""
    if not _readable(entry, faults):
        return None
    try:
        with entry.path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        faults.add(1, 1, "unreadable", f"the file cannot be opened ({error.strerror})")
        return None
    if len(content) > MAX_BYTES:
        faults.add(1, 1, "size", f"the file is larger than {MAX_BYTES:,} bytes")
        return None
    return decode(content, entry.name, faults)


def decode(content: bytes, name: str, faults: Faults) -> Source | None:
    """Bytes as a Source. A byte-order mark and CRLF are reported and taken out; broken UTF-8 or a NUL ends it."""
    if content.startswith(_BOM):
        content = content[len(_BOM) :]
        faults.add(1, 1, "bom", "the file begins with a byte-order mark")
    if b"\x00" in content:
        faults.add(*_place(content, content.index(b"\x00")), "nul", "there is a NUL byte")
        return None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        faults.add(*_place(content, error.start), "encoding", f"byte 0x{byte:02x} is not UTF-8 here")
        return None
    if "\r" in text:
        faults.add(text.count("\n", 0, text.index("\r")) + 1, 1, "crlf", "lines end in CR or CRLF")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return Source(name, text) if _bounded(text, faults) else None


def _bounded(text: str, faults: Faults) -> bool:
    lines = text.split("\n")
    if len(lines) > MAX_LINES:
        faults.add(MAX_LINES, 1, "size", f"the file has {len(lines):,} lines; at most {MAX_LINES:,} are read")
        return False
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LINE:
            faults.add(
                number, MAX_LINE, "size", f"the line has {len(line):,} characters; at most {MAX_LINE:,} are read"
            )
            return False
    return True


def _readable(entry: Entry, faults: Faults) -> bool:
    if not entry.path.is_symlink() and entry.path.is_file():
        return True
    try:
        real = entry.path.resolve(strict=True)
        inside = real.is_relative_to(entry.root.resolve())
    except (OSError, RuntimeError):
        faults.add(1, 1, "unreadable", "there is no such file, or its link leads nowhere")
        return False
    if not inside:
        faults.add(1, 1, "symlink", "the link leads out of the data folder")
    elif not real.is_file():
        faults.add(1, 1, "unreadable", "this is not a regular file, and no linked folder is followed")
    return inside and real.is_file()


def _place(content: bytes, offset: int) -> tuple[int, int]:
    line = content.count(b"\n", 0, offset) + 1
    start = content.rfind(b"\n", 0, offset) + 1
    return line, len(content[start:offset].decode("utf-8", errors="replace")) + 1
