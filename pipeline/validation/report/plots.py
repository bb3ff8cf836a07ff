"""Plots as inline SVG. Colours are the page's own CSS variables, so that one drawing serves light and dark."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

Table = Mapping[str, Mapping[str, Any]]
# Colours that nothing else in a drawing has: each is replaced by a CSS variable in the finished SVG.
_INK, _TUNED, _BASE, _LINE = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {_INK: "var(--ink)", _TUNED: "var(--tuned)", _BASE: "var(--base)", _LINE: "var(--line)"}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.transparent": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_WIDTH = 6.0  # inches: about what a phone's width shows without the letters becoming too small


def loss(steps: Sequence[Mapping[str, Any]]) -> str:
    """Training loss at each step and the held-out loss where it was measured, in nats a token."""
    if not steps:
        return ""

    def draw(axes: Any) -> None:
        axes.plot([row["step"] for row in steps], [row["loss"] for row in steps], color=_BASE, label="trained on")
        held = [row for row in steps if row.get("held_out_loss") is not None]
        if held:
            axes.plot(
                [row["step"] for row in held],
                [row["held_out_loss"] for row in held],
                color=_TUNED,
                marker="o",
                label="never seen",
            )
        axes.set_xlabel("training step")
        axes.set_ylabel("surprise a token (nats)")
        axes.legend()

    return _svg("loss", 3.0, draw, "How surprised the model was by the Dungeon Master's words while it learnt")


def accuracy(name: str, tuned: Table, base: Table) -> str:
    """Accuracy of each row with its 95 % interval, the tuned model above the untuned base."""
    if not tuned:
        return ""
    rows = sorted(tuned, key=lambda row: tuned[row]["value"])

    def draw(axes: Any) -> None:
        for table, colour, shift, label in ((tuned, _TUNED, 0.2, "this model"), (base, _BASE, -0.2, "untuned base")):
            known = [(at, table[row]) for at, row in enumerate(rows) if row in table]
            if not known:
                continue
            values = [figure["value"] for _, figure in known]
            low = [max(0.0, figure["value"] - figure["low"]) for _, figure in known]
            high = [max(0.0, figure["high"] - figure["value"]) for _, figure in known]
            places = [at + shift for at, _ in known]
            axes.barh(places, values, height=0.36, color=colour, label=label)
            axes.errorbar(values, places, xerr=[low, high], fmt="none", ecolor=_INK, elinewidth=0.9, capsize=2)
        axes.set_yticks(range(len(rows)), [f"{row} ({tuned[row]['turns']})" for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of turns with exactly the right call")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

    return _svg(
        name, 1.1 + 0.42 * len(rows), draw, "Accuracy by row, with 95 % intervals; the number of turns in brackets"
    )


def confusion(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Rows are what was wanted, columns what the model did; the darker, the more often."""
    if not counts:
        return ""
    rows = list(counts)
    columns = [*rows, *sorted({found for row in counts.values() for found in row} - set(rows))]

    def draw(axes: Any) -> None:
        for y, row in enumerate(rows):
            whole = sum(counts[row].values())
            for found, count in counts[row].items():
                x = columns.index(found)
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=_TUNED, alpha=0.15 + 0.85 * count / whole))
                axes.text(x, y, str(count), ha="center", va="center", fontsize=7, color=_INK)
        axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=90, fontsize=8)
        axes.set_yticks(range(len(rows)), [_short(name) for name in rows], fontsize=8)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("what the model did")
        axes.set_ylabel("what was wanted")

    return _svg("confusion", 2.0 + 0.22 * len(rows), draw, "Which calls are taken for one another")


def divergence(edges: Sequence[str], counts: Sequence[int]) -> str:
    """How far the shipped file's choices are from the full-precision file's, as a histogram."""
    if not counts:
        return ""

    def draw(axes: Any) -> None:
        axes.bar(range(len(counts)), counts, color=_TUNED)
        names = [
            f"below {float(edges[at + 1]):.0e}" if at + 2 < len(edges) else f"over {float(edges[at]):.0e}"
            for at in range(len(counts))
        ]
        axes.set_xticks(range(len(counts)), names, rotation=45, ha="right", fontsize=8)
        axes.set_ylabel("tokens")
        axes.set_xlabel("KL divergence (nats)")

    return _svg("divergence", 2.8, draw, "How much the smaller file changes the model's choices, token by token")


def trade_off(candidates: Sequence[Mapping[str, Any]], chosen: str) -> str:
    """Size of each measured file against the share of turns it loses or gains beside the unshrunk one."""
    measured = [one for one in candidates if one["mean_kl"] is not None]
    if not measured:
        return ""

    def draw(axes: Any) -> None:
        for one in measured:
            size, difference = one["bytes"] / 1e6, one["difference"]
            value = difference["mean"] if difference else -one["mean_kl"]
            if difference:
                spread = [[max(0.0, value - difference["low"])], [max(0.0, difference["high"] - value)]]
                axes.errorbar([size], [value], yerr=spread, fmt="none", ecolor=_INK, elinewidth=0.9, capsize=3)
            taken = one["kind"] == chosen
            axes.plot([size], [value], "o", color=_TUNED if taken else _BASE, markersize=8)
            name = f"{one['kind']}, taken" if taken else one["kind"]
            axes.annotate(name, (size, value), xytext=(8, 6), textcoords="offset points", fontsize=9)
        axes.axhline(0, color=_LINE)
        axes.margins(x=0.25, y=0.25)
        axes.set_xlabel("MB")
        scored = any(one["difference"] for one in measured)
        axes.set_ylabel("turns right, beside f16" if scored else "−KL beside f16 (nats)")

    return _svg("trade_off", 3.2, draw, "File size against what each quantisation loses")


def sizes(files: Mapping[str, float], budget: float) -> str:
    """File sizes in bytes beside the budget."""
    if not files:
        return ""

    def draw(axes: Any) -> None:
        axes.barh(list(files), [size / 1e6 for size in files.values()], color=_TUNED, height=0.5)
        for at, size in enumerate(files.values()):
            axes.text(size / 1e6, at, f" {size / 1e6:,.0f} MB", va="center", fontsize=9)
        axes.set_xlim(0, 1.25 * max(files.values()) / 1e6)
        axes.set_xlabel(f"MB (budget: {budget / 1e6:,.0f} MB)")

    return _svg("sizes", 0.9 + 0.4 * len(files), draw, "Size of the files")


def _svg(name: str, height: float, draw: Callable[[Any], None], label: str) -> str:
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    start, end = text[: text.index(">")], text[text.index(">") :]
    kept = " ".join(part for part in start.split(" ") if not part.startswith(("width=", "height=")))
    text = f'{kept} role="img" aria-label="{label}"{end}'
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def _short(name: str) -> str:
    return name.removeprefix("roll: ")
