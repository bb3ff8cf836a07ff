"""llama.cpp's source: one pinned commit, from the registry's source distribution or from a checkout of the user's.

Archives are read as data. Of an archive only regular files below the known folders are written, by us, one by one;
a path that leaves the folder, or a link, is refused. Nothing of the package is imported or run: pip insists on asking a
source distribution for its metadata, so it is given a build backend of ours that answers instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline import files
from pipeline.errors import MachineError, UsageError
from pipeline.progress import Stage

ANCHOR = "convert_hf_to_gguf.py"  # the file by which the top of a llama.cpp tree is recognised
PARTS = (
    "CMakeLists.txt",
    "LICENSE",
    "cmake",
    "common",
    "conversion",
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "ggml",
    "gguf-py",
    "include",
    "licenses",
    "models/templates",
    "scripts",
    "src",
    "tools",
    "vendor",
)
_OFFLINE = (
    "No matching distribution found",
    "Could not find a version",
    "Connection",
    "Max retries",
    "Name or service",
    "timed out",
)
_BACKEND = """
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    import pathlib
    info = pathlib.Path(directory, "{name}-{version}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return info.name

def get_requires_for_build_wheel(config_settings=None):
    return []

def build_wheel(*arguments, **options):
    raise RuntimeError("this package is read as data and never built")
"""


@dataclass(frozen=True)
class Pin:
    """One source, known by digest: the registry's archive, and the tree (its PARTS alone) wherever it comes from."""

    package: str
    version: str
    sha256: str
    commit: str
    tree: str
    backend: str = "scikit_build_core.build"  # the archive's declared build backend, which ours stands in for

    @property
    def archive(self) -> str:
        return f"{self.package}-{self.version}.tar.gz"


PIN = Pin(
    package="llama_cpp_python",
    version="0.3.36",
    sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    commit="0c1e57098bba43ac29e6e3b677cdceebdd22334f",
    tree="df805f10945c8be66e1f92b9f925ca29d3df1200a3dbc41575357050d2991d23",
)


def provide(source: Path | None, target: Path, downloads: Path, stage: Stage, pin: Pin = PIN) -> None:
    """Put the pinned tree into the folder `target`, which appears whole or not at all.

    `source` is None (the registry), a folder or a tar archive. Raises MachineError or UsageError.
    """
    with files.atomic_path(target) as temporary:
        temporary.mkdir()
        if source is None:
            _unpack(archive(downloads, stage, pin), temporary)
            return
        if source.is_dir():
            _copy(source, temporary)
        elif source.is_file():
            _unpack(source, temporary)
        else:
            raise UsageError(
                f"there is no {str(source)!r}", where="--llama-source", fix="give a llama.cpp folder or a tar.gz of one"
            )
        _require_tree(temporary, source, pin)


def archive(downloads: Path, stage: Stage, pin: Pin = PIN) -> Path:
    """The registry's source distribution, its digest verified; from `downloads` when it is already there."""
    path = downloads / pin.archive
    if path.is_file():
        if files.sha256_file(path) == pin.sha256:
            return path
        stage.note(f"{path} is corrupted (its sha256 is not {pin.sha256[:12]}…) and is fetched again")
        path.unlink()
    stage.note(f"fetching {pin.archive}: it holds the source of llama.cpp {pin.commit[:10]}")
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads) as folder:
        fetched = _download(Path(folder), pin)
        found = files.sha256_file(fetched)
        if found != pin.sha256:
            raise MachineError(
                f"{pin.archive} is not the pinned file: its sha256 is {found}, not {pin.sha256}",
                fix="do not use this file; check what pip's configuration points at, then run again",
            )
        fetched.replace(path)
    return path


def tree_digest(folder: Path) -> str:
    """Digest of the PARTS of a llama.cpp tree: every file's path and content."""
    found: list[Path] = []
    for part in PARTS:
        path = folder / part
        found += (
            [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
        )
    return files.sha256_json(files.sha256_files(found, folder))


def _download(folder: Path, pin: Pin) -> Path:
    """Let pip fetch the archive: its index, links and certificate are the user's own. It checks the digest itself."""
    stand_in = folder / "backend" / Path(*pin.backend.split(".")).with_suffix(".py")
    stand_in.parent.mkdir(parents=True)
    (stand_in.parent / "__init__.py").touch()
    stand_in.write_text(_BACKEND.format(name=pin.package, version=pin.version), encoding="utf-8")
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{pin.package}=={pin.version} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    command += ["--require-hashes", "--progress-bar", "off", "--dest", str(folder), "--requirement", str(wanted)]
    environment = {**os.environ, "PYTHONPATH": str(folder / "backend")}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise _explain(answer.stdout + answer.stderr, pin)
    return folder / pin.archive


def _explain(output: str, pin: Pin) -> MachineError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = "\n  ".join(lines[-4:]) or "pip said nothing"
    if "DO NOT MATCH THE HASHES" in output:
        return MachineError(
            f"{pin.archive} as the registry gives it is not the pinned file:\n  {last}",
            where="pip download",
            fix="do not use it; check what pip's configuration points at, then run again",
        )
    if any(sign in output for sign in _OFFLINE):
        return MachineError(
            f"{pin.archive} cannot be fetched: there is no network, or pip's index does not have it:\n  {last}",
            where="pip download",
            fix=f"connect and run again, or give --llama-source a checkout or tar.gz of llama.cpp {pin.commit[:10]}",
        )
    return MachineError(
        f"pip could not fetch {pin.archive}:\n  {last}", where="pip download", fix="see pip's message above"
    )


def _unpack(path: Path, target: Path) -> None:
    try:
        with tarfile.open(path) as bundle:
            members = bundle.getmembers()
            top = _top(members, path)
            for member, relative in _wanted(members, top, path):
                content = bundle.extractfile(member)
                if content is None:
                    raise tarfile.TarError(f"{member.name} has no content")
                place = target / relative
                place.parent.mkdir(parents=True, exist_ok=True)
                with content, place.open("wb") as out:
                    shutil.copyfileobj(content, out)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise MachineError(
            f"the archive cannot be unpacked: {error}",
            where=str(path),
            fix="remove the file and run again; check the disk",
        ) from error


def _top(members: list[tarfile.TarInfo], path: Path) -> PurePosixPath:
    anchors = [PurePosixPath(member.name) for member in members if PurePosixPath(member.name).name == ANCHOR]
    if not anchors:
        raise UsageError(
            f"the archive holds no {ANCHOR}", where=str(path), fix="give a tar.gz of a whole llama.cpp tree"
        )
    return min(anchors, key=lambda anchor: len(anchor.parts)).parent


def _wanted(
    members: list[tarfile.TarInfo], top: PurePosixPath, path: Path
) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    """The regular files below `top` that the build needs. A path that leaves the archive's folder is refused."""
    for member in members:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise MachineError(
                f"the archive holds a path that leaves its folder: {member.name!r}",
                where=str(path),
                fix="do not use this archive",
            )
        if name.is_relative_to(top) and _is_part(name.relative_to(top)):
            if member.isfile():
                yield member, name.relative_to(top)
            elif not member.isdir():
                raise MachineError(
                    f"the archive holds a link or device: {member.name!r}",
                    where=str(path),
                    fix="do not use this archive",
                )


def _is_part(path: PurePosixPath) -> bool:
    return any(path.is_relative_to(part) for part in PARTS)


def _copy(source: Path, target: Path) -> None:
    if not (source / ANCHOR).is_file():
        raise UsageError(f"the folder holds no {ANCHOR}", where=str(source), fix="give the top of a llama.cpp tree")
    for part in PARTS:
        path, place = source / part, target / part
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, place, symlinks=True)
        elif path.is_file():
            shutil.copyfile(path, place)


def _require_tree(folder: Path, source: Path, pin: Pin) -> None:
    found = tree_digest(folder)
    if found != pin.tree:
        raise MachineError(
            f"this is not llama.cpp {pin.commit}: its tree's digest is {found[:16]}…, not {pin.tree[:16]}…",
            where=str(source),
            fix=f"check out commit {pin.commit[:10]} without local changes, or leave --llama-source out",
        )
