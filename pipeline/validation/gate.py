"""The gate: may this model be shipped? Every reason against it at once, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import FILE_GB, MEMORY_GB, ExportConfig, GateConfig, ParityConfig
from pipeline.errors import GateRefused
from pipeline.files import human_size
from pipeline.validation.figures import COMPARED

_LEAST = {
    "tool_call_accuracy": ("tool-call accuracy", "min_tool_call_accuracy"),
    "call_turn_accuracy": ("accuracy on the turns that want a call", "min_call_turn_accuracy"),
    "no_call_accuracy": ("accuracy on the turns that want none", "min_no_call_accuracy"),
    "stop_rate": ("the share of replies that end by themselves", "min_stop_rate"),
}


def reasons(
    result: Mapping[str, Any],
    gate: GateConfig,
    export: ExportConfig | None = None,
    parity: Mapping[str, Any] | None = None,
) -> list[str]:
    """Why the model is refused; empty when it passes. `parity` is the content of parity.json."""
    found = [*_too_low(result, gate), *_against_base(result, gate), *_against_promoted(result, gate)]
    found += _over_budget(result, gate, export)
    check = result.get("runtime_check") or {}
    if check.get("state") == "failed":
        found.append(f"the app's runtime: {check['reason']}")
    found += [f"the held-out part leaks: {leak}" for leak in result.get("split_leaks", [])[:5]]
    if parity is not None:
        bounds = export.parity if export else ParityConfig()
        found += _not_faithful(parity, bounds)
    return found


def require(
    result: Mapping[str, Any],
    gate: GateConfig,
    run: Path,
    export: ExportConfig | None = None,
    parity: Mapping[str, Any] | None = None,
) -> None:
    """Raise GateRefused (exit 3) with every reason; the model stays in the run's folder."""
    found = reasons(result, gate, export, parity) if gate.enabled else []
    if found:
        raise GateRefused(
            "the model was measured and refused:\n  " + "\n  ".join(found),
            where=str(run / "validation" / "validation.json"),
            fix="see validation/report.html beside it; add or mend training data, train longer (--preset best), or "
            "change the gate in the config. Nothing in assets/models changed",
        )


def _too_low(result: Mapping[str, Any], gate: GateConfig) -> list[str]:
    found = []
    for name, (what, key) in _LEAST.items():
        wanted, figure = getattr(gate, key), result[name]
        if figure["turns"] and not figure["value"] >= wanted:
            found.append(f"{what} is {figure['value']:.3f}, at least {wanted:.3f} is wanted (gate.{key})")
    return found


def _against_base(result: Mapping[str, Any], gate: GateConfig) -> list[str]:
    ours, base = (side["tool_call_accuracy"]["value"] for side in (result, result["baseline"]))
    comparison = result["baseline"].get("comparison", {}).get("tool_call_accuracy")
    gain = comparison["value"] if comparison else ours - base  # on the turns that both played, where that is known
    if gain >= gate.min_gain_over_base:
        return []
    wanted = f"{gate.min_gain_over_base:.2f} above"
    return [f"tool-call accuracy {ours:.3f} is not {wanted} the untuned base's {base:.3f} (gate.min_gain_over_base)"]


def _against_promoted(result: Mapping[str, Any], gate: GateConfig) -> list[str]:
    compared = (result.get("promoted") or {}).get("comparison", {})
    if not gate.not_worse_than_promoted:
        return []
    return [
        f"{name.replace('_', ' ')} is worse than the promoted model's by {-compared[name]['value']:.3f} "
        f"(95 %: {-compared[name]['high']:.3f}–{-compared[name]['low']:.3f})"
        for name in COMPARED
        if compared.get(name, {}).get("verdict") == "worse"
    ]


def _over_budget(result: Mapping[str, Any], gate: GateConfig, export: ExportConfig | None) -> list[str]:
    found = []
    size = result.get("file_bytes", 0)
    if export and size > (largest := export.max_size_gb or FILE_GB) * 1e9:
        found.append(f"the file is {human_size(size)}, at most {largest:g} GB is allowed (export.max_size_gb)")
    memory = max((result.get("phone") or {}).get("resident_bytes", {}).values(), default=0)
    if memory > (most := gate.max_memory_gb or MEMORY_GB) * 1e9:
        found.append(f"it takes {human_size(memory)} of memory, at most {most:g} GB is allowed (gate.max_memory_gb)")
    return found


def _not_faithful(parity: Mapping[str, Any], bounds: ParityConfig) -> list[str]:
    found = []
    for name, what, kl, top1 in (
        ("f16_against_trained", "the f16 file and the trained model", bounds.f16_mean_kl, bounds.f16_top1),
        ("quantised_against_f16", "the quantised and the f16 file", bounds.quant_mean_kl, bounds.quant_top1),
    ):
        measured = parity[name]
        if not (measured["mean_kl"] <= kl and measured["top1"] >= top1):
            found.append(
                f"{what} differ: mean KL {measured['mean_kl']:.1e} (at most {kl:g}), top-1 {measured['top1']:.3f} (at least {top1:g})"
            )
    return found
