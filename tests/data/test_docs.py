"""The counts in docs/data.md are those of the corpus."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pipeline.data.check import load_corpus
from pipeline.data.scenario import Kind
from pipeline.data.tools import Call, find_calls

DOCS = Path("docs/data.md")


def name_of(call: Call) -> str:
    """A skill, save or ability as called, other calls by their tool; "roll: dice" for formulas."""
    argument = "dice" if any(letter.isdigit() for letter in call.arguments) else call.arguments
    return f"{call.tool}: {argument}" if call.tool in ("roll", "check") else call.tool


def test_the_table_of_calls_is_that_of_the_corpus() -> None:
    corpus = load_corpus(Path("training_data"))
    scenarios, drills, lines = Counter[str](), Counter[str](), 0
    for turn in (turn for scenario in corpus.scenarios for turn in scenario.of(Kind.DM)):
        scenarios.update([name_of(call) for call in find_calls(turn.text)] or ["none"])
    for drill in (drill for file in corpus.drills for section in file.sections for drill in section.drills):
        lines += 1
        calls = (drill.call, *drill.then) if drill.call else ()
        drills.update([name_of(call) for call in calls] or ["none"])
    names = [*sorted({*scenarios, *drills} - {"none"}), "none"]
    table = "\n".join(["| call | scenarios | drills |", "|---|---|---|"])
    table += "".join(f"\n| {name} | {scenarios[name]} | {drills[name]} |" for name in names)
    told = (
        f"{len(corpus.scenarios)} scenarios in eight categories (31 each), {lines:,} drill lines and "
        f"{len(corpus.variants)} paraphrases."
    )
    text = DOCS.read_text(encoding="utf-8")
    assert table in text and told in text, f"write this into {DOCS}:\n{table}\n\n{told}"
