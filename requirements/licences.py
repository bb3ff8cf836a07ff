"""Write docs/licences.md: python requirements/licences.py [REPORT], in an environment with a training lock and dev.txt.

Licences are what the packages' own metadata says. Packages for other machines are not installed here; pip 25 or newer
reads their metadata without fetching them, and REPORT is what it wrote:
pip install --dry-run --no-deps --ignore-installed --require-hashes --report REPORT
    -r requirements/cuda.txt -r requirements/container.txt -r requirements/nvcc.txt
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import cast

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.bases import catalog  # noqa: E402
from pipeline.provenance.packages import LOCKS, canonical, licence_in  # noqa: E402

PAGE = ROOT / "docs" / "licences.md"
UNREAD = "not read: it is not installed where this page was made"
_HEAD = """# Licences

dm-forge itself is Apache-2.0 (`LICENSE`). What it rests on keeps its own licences; every promoted model's bill of materials
(`*.cdx.json`) repeats them for exactly what was used. This page is made by `python requirements/licences.py` from the
packages' own metadata; names that are not in SPDX's list are the packages' own words.

## Base models

A model that was trained from a base is under the base's terms. "Accept" is the word for `--accept-licence`.

| base | licence | accept | terms |
|---|---|---|---|
"""
_TOOLS = """
## Tools built from source

| tool | licence |
|---|---|
| llama.cpp, with ggml | MIT (its `LICENSE` lies beside the tools in the cache) |

## Python packages

| package | licence | locks |
|---|---|---|
"""


Known = Mapping[str, Message]


def page(known: Known) -> str:
    """The whole page, sorted by name, from the packages' metadata: equal metadata give equal text."""
    bases = [
        f"| {entry.name} | {entry.licence} | {entry.licence_terms.must_accept or '–'} | <{entry.licence_terms.url}> |"
        for entry in catalog.entries().values()
    ]
    return _HEAD + "\n".join(bases) + "\n" + _TOOLS + "\n".join(_packages(known)) + "\n"


def _packages(known: Known) -> list[str]:
    locks: dict[str, list[str]] = {}
    for path in sorted(LOCKS.glob("*.txt")):
        found = re.findall(r"^([A-Za-z0-9][\w.-]*)==", path.read_text(encoding="utf-8"), re.MULTILINE)
        for name in dict.fromkeys(found):
            locks.setdefault(canonical(name), []).append(path.stem)
    return [
        f"| {name} | {licence_in(known[name]).text if name in known else UNREAD} | {', '.join(where)} |"
        for name, where in sorted(locks.items())
    ]


def installed() -> dict[str, Message]:
    return {canonical(one.metadata["Name"]): cast(Message, one.metadata) for one in metadata.distributions()}


def reported(report: Path) -> dict[str, Message]:
    """The metadata in a report of pip's."""
    found = {}
    for item in json.loads(report.read_text(encoding="utf-8"))["install"]:
        about = item["metadata"]
        message = Message()
        for key, header in (("license_expression", "License-Expression"), ("license", "License")):
            if about.get(key):
                message[header] = about[key]
        for classifier in about.get("classifier", []):
            message["Classifier"] = classifier
        found[canonical(about["name"])] = message
    return found


if __name__ == "__main__":
    read = {name: about for argument in sys.argv[1:] for name, about in reported(Path(argument)).items()}
    text = page(read | installed())
    PAGE.write_text(text, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {text.count(UNREAD)} licences not read")
