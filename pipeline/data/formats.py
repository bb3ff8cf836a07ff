"""The checker's findings for people, for machines, for GitHub's annotations and for SARIF viewers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

from pipeline.data.faults import Fault, errors
from pipeline.data.rules import RULES

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_text(faults: Sequence[Fault], files: int) -> str:
    """One line for each fault, then the sum."""
    failed = len(errors(faults))
    lines = [str(fault) for fault in faults]
    lines.append(f"{files:,} files: {failed} errors, {len(faults) - failed} warnings")
    return "\n".join(lines)


def as_json(faults: Sequence[Fault], files: int) -> str:
    body = {"files": files, "errors": len(errors(faults)), "faults": [asdict(fault) for fault in faults]}
    return json.dumps(body, indent=2, ensure_ascii=False)


def as_github(faults: Sequence[Fault], files: int) -> str:
    """Workflow commands that GitHub shows beside the lines they speak of."""
    lines = []
    for fault in faults:
        place = f"file={_property(fault.path)},line={fault.line},col={fault.column},title={_property(fault.code)}"
        lines.append(f"::{fault.severity} {place}::{_message(f'{fault.what}; {fault.why}; {fault.fix}')}")
    return "\n".join(lines)


def as_sarif(faults: Sequence[Fault], files: int) -> str:
    """SARIF 2.1.0 with every rule that was broken."""
    used = sorted({fault.code for fault in faults})
    rules = [
        {"id": code, "shortDescription": {"text": RULES[code].why}, "help": {"text": RULES[code].fix}} for code in used
    ]
    driver = {"name": "dm-forge data check", "rules": rules}
    run = {"tool": {"driver": driver}, "results": [_result(fault, used) for fault in faults]}
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False)


FORMATS: dict[str, Callable[[Sequence[Fault], int], str]] = {
    "text": as_text,
    "json": as_json,
    "github": as_github,
    "sarif": as_sarif,
}


def _result(fault: Fault, used: list[str]) -> dict[str, object]:
    region = {"startLine": fault.line, "startColumn": fault.column}
    location = {"physicalLocation": {"artifactLocation": {"uri": fault.path.replace("\\", "/")}, "region": region}}
    return {
        "ruleId": fault.code,
        "ruleIndex": used.index(fault.code),
        "level": fault.severity,
        "message": {"text": f"{fault.what}; {fault.why}; {fault.fix}"},
        "locations": [location],
    }


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
