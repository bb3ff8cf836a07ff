"""Which client runtime loads which file, and the refusal where it does not."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from pipeline.errors import ExportError, UsageError
from pipeline.files import human_size

TABLE = Path(__file__).with_name("runtimes.yaml")


class Runtime(BaseModel):
    """One row: `architectures` as GGUF names them, `max_gb` the largest file in powers of ten."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    package: str
    match: str
    architectures: tuple[str, ...]
    max_gb: float | None = None
    note: str = ""

    def why_not(self, architecture: str, size: int = 0) -> str | None:
        """Why this runtime cannot load such a file, or None where it can."""
        if architecture not in self.architectures:
            return f"{self.package} {self.match} does not load {architecture!r}: {self.note}"
        if self.max_gb is not None and size > self.max_gb * 1e9:
            return (
                f"{self.package} {self.match} takes files of at most {self.max_gb:g} GB, this one is {human_size(size)}"
            )
        return None


@cache
def runtimes() -> tuple[Runtime, ...]:
    rows = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return tuple(Runtime.model_validate(row) for row in rows)


def find(name: str) -> Runtime:
    """`cactus@0.2`, `cactus@0.2.4`, `llama.rn`, …; raises UsageError (exit 2) with the known names."""
    for runtime in runtimes():
        if name == runtime.name or name.startswith(f"{runtime.name}.") or name.partition("@")[0] == runtime.name:
            return runtime
    raise UsageError(
        f"there is no runtime {name!r}",
        where="--runtime",
        fix=f"use one of: {', '.join(row.name for row in runtimes())}",
    )


def require(name: str, architecture: str, size: int = 0) -> Runtime:
    """The runtime, if it loads such a file. Raises ExportError naming those that do."""
    runtime = find(name)
    reason = runtime.why_not(architecture, size)
    if reason:
        able = loading(architecture, size)
        raise ExportError(
            f"the target runtime cannot load this model: {reason}",
            where=f"--runtime {name}",
            fix=f"choose a runtime that does ({', '.join(able) or 'none is known'}), or another base",
        )
    return runtime


def loading(architecture: str, size: int = 0) -> list[str]:
    """Names of the runtimes that load such a file."""
    return [runtime.name for runtime in runtimes() if runtime.why_not(architecture, size) is None]
