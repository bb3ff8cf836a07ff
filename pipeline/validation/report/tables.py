"""The report's tables: the models side by side, what is proven of them, and the games they played."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_ROWS = (
    ("tool_call_accuracy", "Right call, or rightly none", "all turns"),
    ("call_turn_accuracy", "Right call where one is wanted", "turns that want a call"),
    ("no_call_accuracy", "Keeps quiet where no call is wanted", "plain turns"),
    ("tool_name_accuracy", "Names the right tool", "turns that want a call"),
    ("argument_accuracy", "Right arguments, once the tool is right", "turns with the right tool"),
    ("calls_invented", "Calls nobody wanted", "plain turns; lower is better"),
    ("malformed_calls", "Broken calls", "lower is better"),
    ("stop_rate", "Comes to an end by itself", "all turns"),
    ("repetition", "Repeats itself", "share of four-word phrases; lower is better"),
    ("distinct_2", "Variety of its words", "different word pairs over all pairs in a game"),
    ("length_ratio", "Length beside the gold replies", "1 is as long"),
    ("chrf", "Closeness to the gold replies", "chrF, 0 to 1; gold is one good reply of many"),
    ("contradictions", "Contradicts the party sheet or the dice", "lower is better"),
    ("out_of_character", "Falls out of the game", "lower is better"),
)

_NO_EXACT = (
    "<p class=soft>The trained model before it was shrunk (f16) did not play in this run: validation.exact_conversations "
    "is 0. How close the shipped file is to it stands under “The file”.</p>"
)

# The others that played, in the order of the columns, and what they are called where a sentence compares with them.
SIDES = (
    ("exact", "unshrunk (f16)", "the unshrunk file"),
    ("baseline", "untuned base", "the untuned base"),
    ("promoted", "shipped until now", "the model shipped until now"),
)


def figures(result: Mapping[str, Any]) -> str:
    """A column for each model; each says how many turns it played."""
    sides = [("this model", result)] + [(label, result[key]) for key, label, _ in SIDES if result.get(key)]
    head = "".join(
        f"<th>{label}<br><small>{side['tool_call_accuracy']['turns']} turns</small>" for label, side in sides
    )
    rows = []
    for name, what, note in _ROWS:
        cells = "".join(
            f"<td class=n>{side[name]['value']:.3f} <small>{side[name]['low']:.2f}–{side[name]['high']:.2f}</small>"
            for _, side in sides
        )
        rows.append(f"<tr><td>{what}<br><small>{note}</small>{cells}")
    if (result.get("perplexity") or {}).get("value"):
        cells = "".join(f"<td class=n>{side['perplexity']['value']:.1f}" for _, side in sides)
        rows.append(
            f"<tr><td>Surprised by the gold replies<br><small>perplexity a token; lower is better</small>{cells}"
        )
    table = f"<div class=scroll><table><tr><th>{head}{''.join(rows)}</table></div>"
    return table if result.get("exact") else table + _NO_EXACT


def compared(result: Mapping[str, Any]) -> str:
    """What can be said of the differences, on the turns that both played."""
    lines = []
    for key, other in (*((key, other) for key, _, other in SIDES), ("grammar", "itself without the grammar")):
        for name, figure in (result.get(key) or {}).get("comparison", {}).items():
            verdict = figure["verdict"]
            colour = {"better": "good", "worse": "bad"}.get(verdict, "soft")
            what = "with the grammar, " if key == "grammar" else ""
            lines.append(
                f"<li>{what}{name.replace('_', ' ')}: <b class={colour}>{verdict}</b> beside {other} ({figure['value']:+.3f}, 95 %: {figure['low']:+.3f} to {figure['high']:+.3f})"
            )
    return f"<p>On the turns that both played:</p><ul>{''.join(lines)}</ul>" if lines else ""


def runtime(check: Mapping[str, Any] | None, how_to: str) -> str:
    """What a client that is not ours made of the file, and what the app must be told."""
    if check is None:
        said = "<p class=soft>No other client was asked to load the file in this run (--runtime-check asks one).</p>"
    else:
        colour = {"played": "good", "failed": "bad"}.get(check["state"], "soft")
        said = f"<p><b class={colour}>{check['state'].capitalize()}.</b> {escape(check['reason'])}.</p>"
        rows = "".join(
            f"<tr><td>{escape(turn['player'])}<td>{escape(turn['shown'])}<td>{escape('; '.join(turn['results'])) or '–'}"
            for turn in check.get("turns", ())
        )
        if rows:
            said += f"<div class=scroll><table><tr><th>player<th>what players see<th>dice{rows}</table></div>"
    return said + (f"<pre>{escape(how_to)}</pre>" if how_to else "")
