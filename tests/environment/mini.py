"""A stand-in for llama.cpp: the same layout and the same build machinery, compiled in a second."""

import io
import tarfile
from pathlib import Path

from pipeline import files
from pipeline.environment import llama_source
from pipeline.environment.llama_cpp import Recipe

COMMIT = "1234567890abcdef1234567890abcdef12345678"
CMAKE = """
cmake_minimum_required(VERSION 3.18)
project(mini C CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_executable(mini-tool ${LLAMA_SOURCE}/src/tool.cpp)
add_executable(mini-other ${LLAMA_SOURCE}/src/other.cpp)
"""
SOURCES = {
    "CMakeLists.txt": "# the top of the tree\n",
    "LICENSE": "MIT\n",
    "convert_hf_to_gguf.py": "print('convert')\n",
    "conversion/base.py": "BASE = 1\n",
    "gguf-py/gguf/__init__.py": "",
    "src/tool.cpp": '#include <cstdio>\nint main() { std::puts("tool"); }\n',
    "src/other.cpp": "int main() { return 7; }\n",
    "docs/unused.md": "not needed\n",
}


def tree(folder: Path, **changed: str) -> Path:
    """Write the stand-in's tree; `changed` replaces a file's content by its stem."""
    for name, content in SOURCES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(changed.get(path.stem, content), encoding="utf-8")
    return folder


def archive(folder: Path, path: Path, *extra: tarfile.TarInfo) -> Path:
    """The tree as a source distribution holds it, below vendor/llama.cpp; `extra` entries are planted as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as bundle:
        bundle.add(folder, "package-1.0/vendor/llama.cpp")
        for entry in extra:
            bundle.addfile(entry, io.BytesIO(b"x" * entry.size))
    return path


def recipe(root: Path, folder: Path, digest: str = "0" * 64) -> Recipe:
    """A recipe for the tree in `folder`, whose archive has this sha256."""
    project = root / "project"
    if not project.exists():  # else another process may be reading it
        files.write_text(project / "CMakeLists.txt", CMAKE)
    pin = llama_source.Pin("mini_package", "1.0", digest, COMMIT, llama_source.tree_digest(folder))
    return Recipe(pin, project, ("mini-tool", "mini-other"))
