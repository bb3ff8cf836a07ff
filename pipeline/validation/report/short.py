"""The report in few words: summary.md for a pull request, junit.xml for a build."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from pipeline.files import human_size
from pipeline.validation.report.replies import Shown, faults
from pipeline.validation.report.tables import SIDES

_HEADLINES = ("tool_call_accuracy", "call_turn_accuracy", "no_call_accuracy", "stop_rate")


def markdown(title: str, result: Mapping[str, Any], reasons: Sequence[str] | None) -> str:
    """A table of the headline figures and the gate's word."""
    sides = {"this model": result} | {name: result[key] for key, name, _ in SIDES if result.get(key)}
    lines = [f"## {title}", "", f"| | {' | '.join(sides)} |", "|---" * (len(sides) + 1) + "|"]
    for name in _HEADLINES:
        cells = [
            f"{side[name]['value']:.3f} ({side[name]['low']:.2f}–{side[name]['high']:.2f})" for side in sides.values()
        ]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    lines.append(f"| turns | {' | '.join(str(side['tool_call_accuracy']['turns']) for side in sides.values())} |")
    lines += ["", "Held-out turns; 95 % intervals in brackets."]
    if size := result.get("file_bytes"):
        lines.append(f"File: {human_size(size)}.")
    if phone := result.get("phone"):
        lines.append(f"Memory: {phone['statement']}.")
    if check := result.get("runtime_check"):
        lines.append(f"Another client, {check['state']}: {check['reason']}.")
    if reasons:
        lines += ["", "**Refused:**", *(f"- {reason}" for reason in reasons)]
    elif reasons is not None:
        lines += ["", "The gate let it pass."]
    return "\n".join(lines) + "\n"


def junit(result: Mapping[str, Any], reasons: Sequence[str] | None, shown: Sequence[Shown]) -> str:
    """The gate as one case for each reason; each game as a case that lists its misses (a miss alone fails no build)."""
    found = list(reasons or [])
    root = ElementTree.Element("testsuites", name="dm-forge validation")
    gate = ElementTree.SubElement(
        root, "testsuite", name="gate", tests=str(max(1, len(found))), failures=str(len(found))
    )
    for reason in found:
        case = ElementTree.SubElement(gate, "testcase", classname="gate", name=reason)
        ElementTree.SubElement(case, "failure", message=reason)
    if not found:
        ElementTree.SubElement(gate, "testcase", classname="gate", name="the model may be shipped")
    games: dict[str, list[Shown]] = defaultdict(list)
    for item in shown:
        games[item.reply.conversation].append(item)
    suite = ElementTree.SubElement(root, "testsuite", name="held-out games", tests=str(len(games)), failures="0")
    properties = ElementTree.SubElement(suite, "properties")
    for name in _HEADLINES:
        ElementTree.SubElement(properties, "property", name=name, value=f"{result[name]['value']:.4f}")
    for game, turns in games.items():
        case = ElementTree.SubElement(suite, "testcase", classname=turns[0].reply.category, name=game)
        misses = [f"{item.where}: {'; '.join(faults(item.judged))}" for item in turns if not item.judged.hit]
        ElementTree.SubElement(case, "system-out").text = "\n".join(misses) or "every turn right"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
