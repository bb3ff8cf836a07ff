"""The arrows of the house: who may import whom, and where heavy or dangerous modules may appear."""

import ast
from pathlib import Path

import pytest

PIPELINE = Path(__file__).parents[1] / "pipeline"
STAGES = {"environment", "data", "bases", "training", "export", "validation", "integration"}
FORMAT = {"pipeline.data.scenario", "pipeline.data.tools", "pipeline.data.chat", "pipeline.data.dataset"}
GROUND = {
    "artifacts",
    "config",
    "files",
    "progress",
    "errors",
    "gguf_file",
    "llama_server",
    "language_model",
    "statistics",
}
ORDER = {"errors": 0, "files": 1, "gguf_file": 1, "progress": 1, "config": 1, "artifacts": 2, "llama_server": 3}
MODULES = sorted(PIPELINE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "pipeline" else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PIPELINE)))
def test_imports_follow_the_arrows(path):
    own = path.relative_to(PIPELINE).parts[0].removesuffix(".py")
    for module in imports(path):
        target = room(module)
        if own in STAGES and target in STAGES and target != own:
            assert (
                any(module == shared or module.startswith(shared + ".") for shared in FORMAT)
                or module == "pipeline.data"
            ), f"{own} imports {module}"
        if own in STAGES | GROUND:
            assert target not in {"cli", "run", "__main__", "revalidate"}, f"{own} imports {module}"
        if own in GROUND:
            assert target not in STAGES, f"{own} imports {module}"
            if target in ORDER:
                assert ORDER[target] < ORDER[own], f"{own} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PIPELINE)))
def test_heavy_and_dangerous_modules_stay_in_their_rooms(path):
    own = path.relative_to(PIPELINE).parts[0].removesuffix(".py")
    roots = {module.split(".")[0] for module in imports(path)}
    if own not in {"environment", "training", "export", "bases", "language_model"}:
        assert "torch" not in roots
    if own not in {"environment", "export", "validation", "bases", "llama_server"}:
        assert "subprocess" not in roots
    if own not in {"cli", "data", "__main__"}:
        assert "typer" not in roots
    assert "pickle" not in roots


def test_help_and_a_config_typo_need_no_heavy_library():
    def top_level(path: Path) -> set[str]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        return found

    seen: set[Path] = set()
    waiting = [PIPELINE / "cli.py", PIPELINE / "run.py", PIPELINE / "config.py"]
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        for module in top_level(path):
            assert module.split(".")[0] not in {"torch", "transformers", "numpy", "trl", "peft", "matplotlib"}, (
                f"{path} imports {module}"
            )
            if module.startswith("pipeline"):
                waiting.append(PIPELINE.parent / (module.replace(".", "/") + ".py"))
