"""docs/licences.md lists every locked package, and what it says of installed ones is what their metadata says."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "requirements" / "licences.py"))
PAGE = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")


def rows(text):
    return dict(re.findall(r"^\| ([\w.-]+) \| ([^|]+) \|", text, re.MULTILINE))


def test_every_locked_package_and_every_base_is_on_the_page():
    assert set(rows(PAGE)) == set(rows(TOOL["page"]({}))), "run python requirements/licences.py"


def test_the_page_says_what_the_packages_say():
    said, now = rows(PAGE), rows(TOOL["page"](TOOL["installed"]()))
    assert {name: said[name] for name in now if now[name] != TOOL["UNREAD"]} == {
        name: text for name, text in now.items() if text != TOOL["UNREAD"]
    }, "run python requirements/licences.py"


def test_a_report_of_pip_is_read(tmp_path):
    report = tmp_path / "report.json"
    report.write_text('{"install": [{"metadata": {"name": "torch", "license_expression": "X-1"}}]}')
    assert rows(TOOL["page"](TOOL["reported"](report)))["torch"] == "X-1"


def test_a_package_without_metadata_is_said_to_be_unread():
    assert rows(TOOL["page"]({}))["torch"] == TOOL["UNREAD"]
