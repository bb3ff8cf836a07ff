"""The README speaks of what is there: its tree, its commands, its versions."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGE = json.loads((ROOT / "package.json").read_text())
TREE = README.split("## The tree")[1].split("```")[1].strip().splitlines()


@pytest.mark.parametrize("line", TREE)
def test_everything_in_the_tree_exists(line):
    path, _, rest = line.partition(" ")
    assert (ROOT / path).exists(), path
    for name in re.findall(r"\b[\w-]+\.(?:js|py|yaml|md)\b", rest):
        assert (ROOT / path / name).exists() or (ROOT / name).exists(), f"{path}{name}"


def test_every_folder_of_the_pipeline_is_in_the_tree():
    listed = {line.split()[0].rstrip("/") for line in TREE}
    rooms = {f"pipeline/{path.name}" for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").is_file()}
    assert rooms <= listed


def test_every_command_is_a_verb_of_the_package():
    verbs = set(re.findall(r"pnpm(?:@\S+)? run ([\w:]+)", README)) | {"test"}
    assert verbs <= set(PACKAGE["scripts"])


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_pnpm_is_named_with_the_pinned_version(name):
    pinned = PACKAGE["packageManager"].split("+")[0]
    assert set(re.findall(r"pnpm@[\d.]+", (ROOT / name).read_text(encoding="utf-8"))) == {pinned}


def test_every_verb_of_the_package_is_a_command():
    from typer.main import get_command

    from pipeline.cli import app

    known = get_command(app)
    for verb, command in PACKAGE["scripts"].items():
        script, *words = command.split()[1:]
        assert (ROOT / script).is_file(), verb
        if script.endswith("run.js"):
            assert words[0] in known.commands, verb
            assert len(words) == 1 or words[1] in known.commands[words[0]].commands, verb
