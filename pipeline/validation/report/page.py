"""report.html: one file without anything from outside, for someone who knows the game and not the machine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline.files import human_size
from pipeline.validation.report import plots, replies, tables
from pipeline.validation.report.replies import Shown

_STYLE = Path(__file__).with_name("style.css")
_CALL = re.compile(r"\[\w+:[^\]]+\]")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# A model that the gate let pass is praised only as far as its accuracy carries.
_WORDS = (
    (0.9, "good", "Good enough to ship."),
    (0.75, "fair", "Passed the gate; players will meet its mistakes."),
    (0.0, "poor", "Passed the gate, but it is for trying the app out, not for players."),
)


def page(
    title: str,
    result: Mapping[str, Any],
    reasons: Sequence[str] | None,
    shown: list[Shown],
    steps: Sequence[Mapping[str, Any]],
    parity: Mapping[str, Any] | None,
    sizes: Mapping[str, float],
    budget: float,
    lineage: Mapping[str, str],
    command: str,
    choice: Mapping[str, Any] | None = None,
    how_to: str = "",
) -> str:
    """The whole page. `reasons` are the gate's (None where there was no gate); `budget` is in bytes; `choice` is the
    report of a measured choice of quantisation; `how_to` tells what the app needs."""
    base = result.get("baseline", {})
    body = [
        f"<h1>{escape(title)}</h1>",
        verdict(result, reasons),
        _numbers(result),
        _section("How good it is", tables.figures(result), tables.compared(result)),
        _section(
            "Call by call",
            _plot(
                plots.accuracy("tools", result["by_tool"], base.get("by_tool", {})),
                "Each tool, and plain turns (none). The lines are 95 % intervals: few turns, long lines.",
            ),
        ),
        _section(
            "Skill by skill",
            _plot(
                plots.accuracy("skills", result["by_skill"], base.get("by_skill", {})),
                "Rolls and checks, each with the number of its turns.",
            ),
        ),
        _section(
            "Kind of scene",
            _plot(
                plots.accuracy("categories", result["by_category"], base.get("by_category", {})),
                "The folders of the training data.",
            ),
        ),
        _section(
            "What is taken for what",
            _plot(
                plots.confusion(result["skill_confusion"]),
                "A dark diagonal is good; a dark cell beside it is a pair of skills to write more scenes about.",
            ),
        ),
        _free_games(result),
        _section(
            "How it learnt",
            _plot(plots.loss(steps), "Both lines should fall; the held-out one rising again means too much training."),
        ),
        _shipped(parity, sizes, budget, result, choice),
        _section("In the app", tables.runtime(result.get("runtime_check"), how_to)),
        _replies("Ten of the best replies", replies.best(shown)),
        _replies("Ten of the worst replies", replies.worst(shown)),
        _section("Where it comes from", _lineage(lineage)),
        _section(
            "Make it again", f"<pre>{escape(command)}</pre>", "<p class=soft>The same inputs give the same bytes.</p>"
        ),
    ]
    style = _STYLE.read_text(encoding="utf-8")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{escape(title)}</title><style>{style}</style>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n'
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def verdict(result: Mapping[str, Any], reasons: Sequence[str] | None) -> str:
    """The gate's word, and the accuracy in a sentence; `reasons` is None where there was no gate."""
    ours = result["tool_call_accuracy"]
    hundred = round(100 * ours["value"])
    sentence = f"In {hundred} of 100 turns it never saw, it does what the scenario's author would do with the dice and the sheet"
    if base := result.get("baseline"):
        sentence += f"; untrained, it was {round(100 * base['tool_call_accuracy']['value'])}"
    if reasons:
        listed = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
        return f'<div class="verdict refused"><p><b class=bad>Not shipped.</b> {sentence}.</p><ul>{listed}</ul></div>'
    if reasons is None:
        return f'<div class="verdict"><p><b>Measured, without a gate.</b> {sentence}.</p></div>'
    colour, word = next((colour, word) for least, colour, word in _WORDS if ours["value"] >= least)
    return f'<div class="verdict {colour}"><p><b class={colour}>{word}</b> {sentence}.</p></div>'


def _numbers(result: Mapping[str, Any]) -> str:
    accuracy = result["tool_call_accuracy"]
    cells = [
        (
            percent(accuracy["value"]),
            f"right turns of {accuracy['turns']}; with other scenes most likely between {percent(accuracy['low'])} and {percent(accuracy['high'])}",
        ),
        (percent(result["stop_rate"]["value"]), "of its replies come to an end by themselves"),
    ]
    if size := result.get("file_bytes"):
        cells.append((human_size(size), "to download"))
    if phone := result.get("phone"):
        memory = next(iter(phone["resident_bytes"].values()))
        cells.append((human_size(memory), phone["statement"]))
        cells.append(
            (
                f"{phone['generated_tokens_per_second']:.0f}",
                f"tokens a second written on this machine; {phone['seconds_to_first_token']:.1f} s until the first",
            )
        )
    return (
        "<div class=numbers>"
        + "".join(f"<div><b>{escape(value)}</b>{escape(text)}</div>" for value, text in cells)
        + "</div>"
    )


def _free_games(result: Mapping[str, Any]) -> str:
    games = result.get("free_games")
    if not games:
        return ""
    rows = "".join(
        f"<tr><td>{name.replace('_', ' ')}<td class=n>{figure['value']:.3f} <small>{figure['low']:.2f}–{figure['high']:.2f} of {figure['turns']}</small>"
        for name, figure in games.items()
        if isinstance(figure, Mapping)
    )
    text = f"<p>{games['games']} games in which the model lives with its own replies and its calls are really carried out.</p>"
    return _section("Left to itself", text, f"<div class=scroll><table>{rows}</table></div>")


def _shipped(
    parity: Mapping[str, Any] | None,
    sizes: Mapping[str, float],
    budget: float,
    result: Mapping[str, Any],
    choice: Mapping[str, Any] | None,
) -> str:
    parts = [_plot(plots.sizes(sizes, budget), "What is downloaded, beside the unshrunk file.")]
    if choice:
        parts.append(
            _plot(
                plots.trade_off(choice["candidates"], choice["chosen"]),
                f"Each way of shrinking it that was measured; {choice['chosen']} was taken: the smallest that is not worse.",
            )
        )
    if parity:
        shrunk = parity["quantised_against_f16"]
        parts.append(
            f"<p>The shipped file picks the same next word as the unshrunk one in {percent(shrunk['top1'])} of {shrunk['positions']} places.</p>"
        )
        parts.append(
            _plot(
                plots.divergence(parity["histogram_edges"], shrunk["histogram"]),
                "The further left, the less the shrinking changed.",
            )
        )
    if phone := result.get("phone"):
        parts.append(f"<p>It {escape(phone['statement'])}.</p>")
    return _section("The file", *parts)


def _replies(title: str, shown: list[Shown]) -> str:
    blocks = []
    for item in shown:
        columns = [
            ("this model", item.reply.text),
            ("the scenario's author", item.reply.gold),
            ("untuned base", item.base if item.base is not None else "(did not play this turn)"),
        ]
        cells = "".join(f"<div><h4>{name}</h4><div>{_text(text)}</div></div>" for name, text in columns)
        problems = "; ".join(replies.faults(item.judged))
        note = f"<p class=bad><small class=bad>{escape(problems)}</small></p>" if problems else ""
        blocks.append(
            f"<div class=reply><p><b>{_text(item.reply.player)}</b><br><small><code>{escape(item.where)}</code></small></p>{note}<div class=three>{cells}</div></div>"
        )
    return _section(title, *blocks)


def _lineage(lineage: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><td>{escape(key)}<td><code>{escape(value)}</code>" for key, value in lineage.items())
    return f"<div class=scroll><table>{rows}</table></div>"


def _section(title: str, *parts: str) -> str:
    kept = [part for part in parts if part]
    return f"<section><h2>{escape(title)}</h2>{''.join(kept)}</section>" if kept else ""


def _plot(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" if svg else ""


def _text(text: str) -> str:
    return _CALL.sub(lambda found: f"<mark>{found[0]}</mark>", escape(text, quote=False)) or "<small>(nothing)</small>"
