"""metrics.jsonl once more as a TensorBoard event file, written by hand: the format is a few lines, the package and its needs over fifty MB.

The file is a projection of the journal: it is made anew from it when a run is resumed, so no step stands in it twice.
Format: records of (length, masked CRC-32C of it, an Event message, masked CRC-32C of that); Event and Summary are
protocol buffers (tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import files

NAME = "events.out.tfevents.dm-forge"
TAGS = {
    "loss": "loss/training",
    "held_out_loss": "loss/held-out",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "tokens_per_second": "speed/tokens per second",
    "memory": "memory/bytes",
}


def write(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """The whole file, as if the steps had been taken one after the other until now."""
    moment = time.time() - sum(entry["seconds"] for entry in entries)
    content = record(event(moment, version="brain.Event:2"))
    for entry in entries:
        moment += entry["seconds"]
        content += record(event(moment, entry))
    files.write_bytes(path, content)


def append(path: Path, entry: dict[str, Any]) -> None:
    with path.open("ab") as file:
        file.write(record(event(time.time(), entry)))


def event(moment: float, entry: dict[str, Any] | None = None, version: str = "") -> bytes:
    """An Event message: wall_time = 1, step = 2, file_version = 3, summary = 5."""
    message = b"\x09" + struct.pack("<d", moment)
    if version:
        message += _field(0x1A, version.encode())
    if entry is not None:
        speed = {"tokens_per_second": entry["tokens"] / max(entry["seconds"], 1e-3)}
        shown = {TAGS[key]: value for key, value in (entry | speed).items() if key in TAGS and value is not None}
        values = (_field(0x0A, name.encode()) + b"\x15" + struct.pack("<f", value) for name, value in shown.items())
        message += b"\x10" + _varint(entry["step"]) + _field(0x2A, b"".join(_field(0x0A, value) for value in values))
    return message


def record(message: bytes) -> bytes:
    length = struct.pack("<Q", len(message))
    return length + _checksum(length) + message + _checksum(message)


def _field(key: int, content: bytes) -> bytes:
    return bytes([key]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _table()


def crc32c(content: bytes) -> int:
    """Castagnoli's CRC-32, as in RFC 3720."""
    value = 0xFFFFFFFF
    for byte in content:
        value = value >> 8 ^ _CRC[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


def _checksum(content: bytes) -> bytes:
    value = crc32c(content)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)
