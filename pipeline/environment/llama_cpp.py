"""llama.cpp, built once and kept: `ensure` gives the tools and the converter of one pinned commit.

    <cache>/llama.cpp/<key>/bin/         the tools
                            source/      what conversion needs: the converter, conversion/, gguf-py/
                            build.json   inputs of the key, sizes of the tools; the folder appears whole or not at all
    <cache>/llama.cpp/downloads/         the archive, so that another build needs no network
    <cache>/llama.cpp/.<key>.work/       a build under way, continued after a kill

The key is the digest of everything the binaries depend on: source tree, settings, compiler and, as they are built for
this very CPU, the CPU. A container image brings its own build, for any CPU, and names its folder in DM_FORGE_LLAMA.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import LlamaCpp
from pipeline.environment import hardware, llama_build, llama_source
from pipeline.errors import MachineError
from pipeline.progress import Stage

DISK_NEEDED = 600_000_000  # bytes: archive, tree, object files and tools, at the fullest moment
_CONVERTER = (
    "LICENSE",
    "conversion",
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "gguf-py",
    "models/templates",
)


@dataclass(frozen=True)
class Recipe:
    """What to build: the pinned source, the CMake project around it, and the tools wanted of it."""

    pin: llama_source.Pin
    project: Path
    targets: tuple[str, ...]


RECIPE = Recipe(llama_source.PIN, Path(__file__).parent / "native", llama_build.TARGETS)


def ensure(cache: Path, stage: Stage, source: Path | None = None, recipe: Recipe = RECIPE) -> LlamaCpp:
    """The tools of the pinned commit, built if they are not there yet (then minutes; else milliseconds).

    `source` is a llama.cpp checkout or tar.gz of the pinned commit, used instead of the registry's archive.
    DM_FORGE_LLAMA_PORTABLE=1 builds for any CPU of this kind instead of this one. Raises MachineError or UsageError.
    """
    shelf = cache.resolve() / "llama.cpp"
    ready = find(cache, recipe)
    if ready is not None:
        stage.summary = f"commit {ready.commit[:10]}, built earlier"
        return ready
    compiler = llama_build.find_compiler()
    inputs = _inputs(recipe, compiler.version)
    key = _key(inputs)
    with _exclusive(shelf, key, stage) as lock:
        ready = _ready(shelf / key)
        if ready is None:
            _build(shelf, key, inputs, compiler, source, recipe, stage, lock)
            ready = _ready(shelf / key)
    if ready is None:
        raise MachineError(
            "llama.cpp was built, and its files do not have the recorded sizes",
            where=str(shelf / key),
            fix="check the disk",
        )
    stage.summary = f"commit {ready.commit[:10]}, built from source"
    return ready


def find(cache: Path, recipe: Recipe = RECIPE) -> LlamaCpp | None:
    """The finished build for this machine, or None. Without a compiler any build that differs in the compiler alone does."""
    shelf = cache.resolve() / "llama.cpp"
    if given := os.environ.get("DM_FORGE_LLAMA"):
        return _given(Path(given), recipe)
    try:
        return _ready(shelf / _key(_inputs(recipe, llama_build.find_compiler().version)))
    except MachineError:
        wanted = _inputs(recipe, "")
        for record in sorted(shelf.glob("*/build.json")):
            if files.read_json(record)["inputs"] | {"compiler": ""} == wanted and (ready := _ready(record.parent)):
                return ready
    return None


def _given(folder: Path, recipe: Recipe) -> LlamaCpp:
    """The build that DM_FORGE_LLAMA names. Raises MachineError unless it is whole and of this very source."""
    ready = _ready(folder)
    made = files.read_json(folder / "build.json")["inputs"] if ready else {}
    for name in ("commit", "tree", "project"):
        if made.get(name) != (wanted := _inputs(recipe, "")[name]):
            raise MachineError(
                f"the llama.cpp there is not the one this dm-forge wants: its {name} is {made.get(name)!r}, not {wanted!r}",
                where=f"DM_FORGE_LLAMA={folder}",
                fix="build the image again, or unset the variable to build llama.cpp here",
            )
    if ready is None:
        raise MachineError("the llama.cpp there is damaged", where=str(folder), fix="build the image again")
    return ready


def _inputs(recipe: Recipe, compiler: str) -> dict[str, Any]:
    portable = os.environ.get("DM_FORGE_LLAMA_PORTABLE") == "1"
    project = [path for path in recipe.project.rglob("*") if path.is_file()]
    settings = llama_build.flags(portable, recipe.pin.commit)
    nvcc = llama_build.nvcc_version(settings)
    return {
        "commit": recipe.pin.commit,
        "tree": recipe.pin.tree,
        "project": files.sha256_files(project, recipe.project),
        "targets": list(recipe.targets),
        "flags": list(settings),
        "compiler": compiler,
        "cpu": "any" if portable else files.sha256_bytes(hardware.cpu_model().encode()),
    } | ({"nvcc": nvcc} if nvcc else {})


def _key(inputs: dict[str, Any]) -> str:
    return files.sha256_json(inputs)[:16]


def _ready(folder: Path) -> LlamaCpp | None:
    """The build in this folder if its record is there and every tool still has the recorded size."""
    try:
        record = files.read_json(folder / "build.json")
    except (OSError, ValueError):
        return None
    for name, size in record["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return None
    return LlamaCpp(folder / "bin", folder / "source", record["inputs"]["commit"], tuple(record["inputs"]["flags"]))


def _build(
    shelf: Path,
    key: str,
    inputs: dict[str, Any],
    compiler: llama_build.Compiler,
    source: Path | None,
    recipe: Recipe,
    stage: Stage,
    lock: int,
) -> None:
    files.require_free_space(shelf, DISK_NEEDED, "building llama.cpp")
    work = shelf / f".{key}.work"
    tree, build, log = work / "source", work / "build", work / "build.log"
    if not tree.exists():  # it appears whole or not at all
        llama_source.provide(source, tree, shelf / "downloads", stage, recipe.pin)
    stage.note(
        f"building {len(recipe.targets)} tools of llama.cpp {recipe.pin.commit[:10]} with {compiler.version}, {llama_build.jobs()} at once"
    )
    llama_build.configure(recipe.project, tree, build, compiler, tuple(inputs["flags"]), log)
    llama_build.compile_targets(build, recipe.targets, compiler, stage, log, lock)
    if llama_build.KERNELS in recipe.targets and not (build / "bin" / llama_build.KERNELS).is_file():
        stage.note(
            "without the kernels for training on a CPU, as this compiler has no OpenMP: PyTorch's serve, more slowly; "
            f"to have them, install libomp-dev (or g++), remove {shelf / key} and run again"
        )
    with files.atomic_path(shelf / key) as final:
        _gather(build / "bin", tree, final, recipe.targets)
        tools = {str(path.relative_to(final)): path.stat().st_size for path in sorted((final / "bin").iterdir())}
        record = {"inputs": inputs, "files": tools, "sha256": files.sha256_files((final / "bin").iterdir(), final)}
        files.write_json(final / "build.json", record)
    files.remove(work)


def _gather(binaries: Path, tree: Path, final: Path, targets: tuple[str, ...]) -> None:
    """The tools with their libraries, and the part of the source that conversion needs."""
    (final / "bin").mkdir(parents=True)
    wanted = [binaries / target for target in targets]
    wanted = [path for path in wanted if path.name != llama_build.KERNELS or path.is_file()]
    wanted += [path for path in binaries.iterdir() if ".so" in path.suffixes or path.suffix in (".dylib", ".metallib")]
    for path in wanted:
        shutil.copy2(path, final / "bin" / path.name, follow_symlinks=False)  # a library's short names are links
    for name in _CONVERTER:
        origin, place = tree / name, final / "source" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, place)
        elif origin.is_file():
            shutil.copyfile(origin, place)


@contextmanager
def _exclusive(shelf: Path, key: str, stage: Stage) -> Iterator[int]:
    """Hold the build's lock, waiting for another run, or for the last compilers of a killed one, to end."""
    shelf.mkdir(parents=True, exist_ok=True)
    with (shelf / f".{key}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stage.note("another run is building llama.cpp: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()
