"""Which base models exist, what each needs, and which one a machine gets by default."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from pipeline.errors import BaseModelError

CATALOGUE = Path(__file__).with_name("catalog.yaml")
EMBEDDED_DEFAULT = "smollm2-135m"
# Names people have been told about that no hub has ever had.
NEVER_EXISTED = {"gemma-3-2b-it": "gemma-3-1b-it, gemma-3-4b-it or gemma-3n-e2b-it"}


class Wheel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    package: str
    version: str
    sha256: str


class Embedded(BaseModel):
    """A GGUF inside wheels: several wheels hold consecutive parts of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    wheels: tuple[Wheel, ...]
    gguf: str
    gguf_sha256: str


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    hub: str
    architecture: str
    licence: str
    parameters: int
    context: int
    multimodal: bool
    runtimes: tuple[str, ...]
    embedded: Embedded | None = None


@cache
def entries() -> dict[str, Entry]:
    content = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return {name: Entry(name=name, **fields) for name, fields in content["bases"].items()}


def find(name: str) -> Entry:
    """The catalogue's entry. Raises BaseModelError with the nearest names when there is none."""
    found = entries().get(name)
    if found:
        return found
    if name in NEVER_EXISTED:
        raise BaseModelError(
            f"there has never been a base model {name!r}", where="--base", fix=f"use {NEVER_EXISTED[name]}"
        )
    near = difflib.get_close_matches(name, entries(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise BaseModelError(
        f"there is no base model {name!r} in the catalogue",
        where="--base",
        fix=f"{hint}known: {', '.join(entries())}; a local folder with a checkpoint works too",
    )


def choose_default() -> tuple[str, str]:
    """The base that `auto` means on this machine, with the reason."""
    return EMBEDDED_DEFAULT, "needs no account and no hub, and is small enough for any machine"
