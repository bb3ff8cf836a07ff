"""Checks safetensors files by their headers alone: truncated, overlapping or inconsistent ones are named.

Format: 8 bytes of header length, little endian, a JSON header with every tensor's type, shape and place, the data.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import BaseModelError

_LARGEST_HEADER = 100_000_000
_SIZES = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights: those of the index where there is one, else every model*.safetensors."""
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(_index(folder).values()))]
    return sorted(folder.glob("model*.safetensors"))


def examine(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by name. Raises BaseModelError naming every missing or damaged file at once."""
    faults: list[str] = []
    found: dict[str, tuple[int, ...]] = {}
    place: dict[str, str] = {}
    for path in weight_files(folder):
        try:
            shapes = read_header(path)
        except BaseModelError as error:
            faults.append(f"{path.name}: {error.what}")
            continue
        faults += [f"{path.name}: {name} is in {place[name]} too" for name in shapes.keys() & place.keys()]
        found |= shapes
        place |= dict.fromkeys(shapes, path.name)
    if not faults and (folder / INDEX).is_file():
        faults = _against_index(_index(folder), place)
    if faults:
        raise BaseModelError(
            "the base's weights are not whole:\n  " + "\n  ".join(faults[:10]),
            where=str(folder),
            fix="fetch these files again; a download may have been cut off",
        )
    return found


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name of one file whose size agrees with its header. Raises BaseModelError."""
    if not path.is_file():
        raise BaseModelError("the file is missing", where=str(path))
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            raise BaseModelError(f"no safetensors header fits into its {size:,} bytes", where=str(path))
        header = file.read(length)
    try:
        content = json.loads(header)
        tensors = {name: _place(fields) for name, fields in content.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(f"its header is damaged ({error})", where=str(path)) from error
    _require_whole(path, tensors, size - 8 - length)
    return {name: shape for name, (shape, _, _) in tensors.items()}


def _place(fields: dict[str, Any]) -> tuple[tuple[int, ...], int, int]:
    shape = tuple(int(length) for length in fields["shape"])
    first, last = fields["data_offsets"]
    if last - first != math.prod(shape) * _SIZES[fields["dtype"]]:
        raise ValueError(f"{last - first} bytes for {fields['dtype']} of shape {list(shape)}")
    return shape, int(first), int(last)


def _require_whole(path: Path, tensors: dict[str, tuple[tuple[int, ...], int, int]], data: int) -> None:
    end = 0
    for name, (_, first, last) in sorted(tensors.items(), key=lambda item: item[1][1:]):
        if first != end:
            raise BaseModelError(f"{name} starts at byte {first:,} of the data instead of {end:,}", where=str(path))
        end = last
    if end != data:
        how = "truncated" if data < end else "too long"
        raise BaseModelError(f"it is {how}: {data:,} bytes of data, its header promises {end:,}", where=str(path))


def _index(folder: Path) -> dict[str, str]:
    try:
        mapping = files.read_json(folder / INDEX)["weight_map"]
        names = {str(tensor): str(name) for tensor, name in mapping.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(
            f"{INDEX} cannot be read: {error}", where=str(folder), fix="fetch that file again"
        ) from error
    if outside := [name for name in names.values() if "/" in name or "\\" in name or name.startswith(".")]:
        raise BaseModelError(f"{INDEX} names a file outside the folder: {outside[0]!r}", where=str(folder))
    return names


def _against_index(index: dict[str, str], place: dict[str, str]) -> list[str]:
    return [
        f"{name}: the index puts it into {index.get(name, 'no file')}, it is in {place.get(name, 'none')}"
        for name in sorted(index.keys() | place.keys())
        if index.get(name) != place.get(name)
    ]
