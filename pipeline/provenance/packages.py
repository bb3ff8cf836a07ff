"""The Python packages that training rests on: version, the digests that the lock allows, licence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import cast

LOCKS = Path(__file__).resolve().parents[2] / "requirements"
TRAINING_LOCKS = ("cpu", "cuda", "metal")
_ENTRY = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)((?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)
_DIGEST = re.compile(r"--hash=sha256:([0-9a-f]{64})")
# Words in metadata older than PEP 639 that mean one licence of SPDX's list and no other.
_SPDX = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd 3-clause license": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit": "MIT",
    "mit license": "MIT",
    "mpl-2.0": "MPL-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
}


@dataclass(frozen=True)
class Licence:
    """`spdx` tells an expression of SPDX's list from a name in the package's own words."""

    text: str
    spdx: bool


@dataclass(frozen=True)
class Package:
    """`digests` are sha256 of every file that the lock allows for this version; empty where no lock has it."""

    name: str
    version: str
    licence: Licence
    digests: tuple[str, ...]


@cache
def installed(locks: Path = LOCKS) -> tuple[Package, ...]:
    """Every installed package that a training lock names, by name."""
    allowed = locked(locks)
    found = []
    for name in sorted({name for name, _ in allowed}):
        with suppress(metadata.PackageNotFoundError):  # a lock's package for another machine
            about = cast(Message, metadata.metadata(name))
            version = str(about["Version"])
            found.append(Package(name, version, licence_in(about), allowed.get((name, version), ())))
    return tuple(found)


def locked(locks: Path = LOCKS) -> dict[tuple[str, str], tuple[str, ...]]:
    """Digests by name and version, over the training locks; empty where there are no locks."""
    digests: dict[tuple[str, str], set[str]] = {}
    for lock in TRAINING_LOCKS:
        path = locks / f"{lock}.txt"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for name, version, rest in _ENTRY.findall(text):
            digests.setdefault((canonical(name), version), set()).update(_DIGEST.findall(rest))
    return {key: tuple(sorted(found)) for key, found in digests.items()}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_in(about: Message) -> Licence:
    """The licence as a package's metadata has it; an ambiguous word such as "BSD" stays a name."""
    if expression := about.get("License-Expression"):
        return Licence(str(expression), True)
    classifiers = [
        str(line).rpartition(" :: ")[2]
        for line in about.get_all("Classifier") or []
        if str(line).startswith("License :: ")
    ]
    said = str(about.get("License") or "").strip().partition("\n")[0].strip()
    return _legacy(said, classifiers)


def _legacy(said: str, classifiers: Sequence[str]) -> Licence:
    if len(classifiers) > 1:
        return Licence(", ".join(sorted(classifiers)), False)
    for word in (said, *classifiers):
        if word.lower() in _SPDX:
            return Licence(_SPDX[word.lower()], True)
    return Licence(next((word for word in (*classifiers, said[:80]) if word), "not stated"), False)
