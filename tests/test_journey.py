"""What a stage's key covers: an edit that changes what is made must not be answered with what was made before."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pipeline import journey, learning

PACKAGE = Path(journey.__file__).parent


@pytest.mark.parametrize("name", ["native/CMakeLists.txt", "runtime/package-lock.json", "runtime/client.js"])
def test_an_edited_flag_or_lock_is_other_code(name, tmp_path, monkeypatch):
    monkeypatch.setattr(journey, "_CODE", tmp_path)
    file = tmp_path / "part" / name
    file.parent.mkdir(parents=True)
    file.write_text("-O2")
    before = journey.code_digest("part")
    file.write_text("-O3")
    assert journey.code_digest("part") != before


def test_every_kind_of_source_file_of_the_package_is_digested():
    kinds = {path.suffix for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert kinds <= set(journey._SOURCES)


def test_the_trainings_key_covers_what_its_data_modules_take_from_the_data_package():
    taken = set()
    for name in ("chat.py", "dataset.py"):
        for node in ast.walk(ast.parse((PACKAGE / "data" / name).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline.data."):
                taken.add(f"data/{node.module.rpartition('.')[2]}.py")
    assert "data/tools.py" in taken
    assert taken - {"data/scenario.py"} <= set(learning._CODE)  # a scenario's code makes the dataset, which is covered
