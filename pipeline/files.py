"""Files that are either whole or absent: temporary name in the same folder, fsync, rename; digests; free space."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import MachineError

_CHUNK = 1 << 20


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; on a clean exit its content is synced and takes the final name.

    The temporary may become a file or a folder. On an error it is removed and `final` stays as it was.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _sync_tree(temporary)
        if final.is_dir() and not final.is_symlink():
            retired = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
            final.rename(retired)
            temporary.rename(final)
            shutil.rmtree(retired)
        else:
            temporary.replace(final)
        _sync(final.parent)
    finally:
        remove(temporary)


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Sorted keys, two spaces, final newline: equal values are equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Digest of the canonical JSON form, so that key order and whitespace do not matter."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def sha256_files(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Digest of each file by its path relative to `root`, in sorted order."""
    return {str(path.relative_to(root)): sha256_file(path) for path in sorted(paths)}


def link_or_copy(source: Path, target: Path) -> None:
    """Hard link where the disk allows it: no second copy is paid for, and a link is never half written."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copy2(source, temporary)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_free_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise MachineError unless `needed` bytes are free on the disk that holds `folder`."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise MachineError(
            f"the disk is too full for {purpose}: {human_size(needed)} needed, {human_size(free)} free",
            where=str(existing),
            fix=f"free {human_size(needed - free)} on that disk, or move the project to a larger one",
        )


def human_size(size: float) -> str:
    """1_234_567 → '1.2 MB' (powers of ten, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _sync_tree(path: Path) -> None:
    if path.is_dir():
        for child in path.rglob("*"):
            if child.is_file():
                _sync(child)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
