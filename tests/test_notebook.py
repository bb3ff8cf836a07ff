"""The notebook runs the command's own stages: it must name things that exist."""

import ast
import json
from pathlib import Path

import nbformat
import pytest

import pipeline.run as journey

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "train_gguf_model.ipynb"
CONTENT = nbformat.read(NOTEBOOK, as_version=4)
CODE = [cell.source for cell in CONTENT.cells if cell.cell_type == "code"]


def test_it_is_a_valid_notebook_without_outputs():
    nbformat.validate(CONTENT)
    assert all(not cell.get("outputs") for cell in CONTENT.cells)


def test_every_stage_of_the_command_has_its_cell_in_order():
    called = [
        node.func.attr
        for source in CODE
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and getattr(node.func.value, "id", "") == "run"
    ]
    wanted = [
        "data",
        "fetch_base",
        "build_llama",
        "preflight",
        "train_adapter",
        "export",
        "prove",
        "validate",
        "promote",
    ]
    assert [name for name in called if name in wanted] == wanted
    assert all(hasattr(journey, name) for name in called)


@pytest.mark.dear
def test_it_runs_from_top_to_bottom(smollm2, llama):
    from nbclient import NotebookClient

    NotebookClient(CONTENT, timeout=1500, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    assert "modelPath" in json.dumps(CONTENT.cells[-1].outputs)
