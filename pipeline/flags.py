"""What flags say in words of their own, read into values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UsageError


def assign(overrides: dict[str, Any], assignment: str) -> None:
    """Put `section.key=value`, the value read as YAML, into nested overrides. Raises UsageError.

    A section that another flag has given a value of its own (`--base x --set base.y=1`) has no keys to set.
    """
    key, equals, value = assignment.partition("=")
    if not equals:
        raise UsageError(
            f"--set wants key=value, not {assignment!r}", where="--set", fix="for example --set training.epochs=2"
        )
    *sections, last = key.strip().split(".")
    for section in sections:
        overrides = overrides.setdefault(section, {})
        if not isinstance(overrides, dict):
            raise UsageError(
                f"--set {assignment!r} wants keys below {section!r}, which another flag sets to {overrides!r}",
                where="--set",
                fix=f"leave one of the two out; a single value is written --set {section}=value",
            )
    overrides[last] = _yaml(key, value)


def _yaml(key: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(
            f"--set {key}={value}: {value!r} is not readable YAML",
            where="--set",
            fix=f"close what is open, or quote it where it is text: --set '{key}=\"{value}\"'",
        ) from error


def gigabytes(text: str | None) -> float | None:
    """2GB, 900MB or a number of bytes. Raises UsageError."""
    if text is None:
        return None
    number = text.upper().removesuffix("B").strip()
    scale = {"G": 1.0, "M": 1e-3}.get(number[-1:])
    try:
        return float(number.rstrip("GM")) * (1e-9 if scale is None else scale)
    except ValueError as error:
        raise UsageError(f"--max-size {text!r} is no size", where="--max-size", fix="write 2GB or 900MB") from error


def app_path(path: Path | None) -> str | None:
    """A path as the app writes it: relative ones begin with a dot."""
    if path is None or path.is_absolute():
        return None if path is None else path.as_posix()
    return f"./{path.as_posix()}"
