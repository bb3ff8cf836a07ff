"""The gate refuses what it should, each with its reason, and passes the rest."""

import copy

import pytest

from pipeline.config import ExportConfig, GateConfig
from pipeline.errors import GateRefused
from pipeline.validation import gate
from pipeline.validation.evaluate import judge_all
from pipeline.validation.figures import compare, figures
from tests.validation.samples import conversation, replies

GAMES = [conversation(number) for number in range(6)]
PARITY = {
    "f16_against_trained": {"mean_kl": 1e-6, "top1": 1.0},
    "quantised_against_f16": {"mean_kl": 0.01, "top1": 0.95},
}


def judged(texts=None, stopped=True):
    return judge_all([reply for game in GAMES for reply in replies(game, texts, stopped)], GAMES)


def measured(texts=None, stopped=True):
    silent = judged({2: "Hush.", 6: "Ouch."})
    ours = judged(texts, stopped)
    result = figures(ours)
    result["baseline"] = figures(silent) | {"comparison": compare(ours, silent)}
    result |= {"file_bytes": 100_000_000, "split_leaks": [], "phone": {"resident_bytes": {"2048": 200_000_000}}}
    return result


def planted(name):
    result, parity = measured(), copy.deepcopy(PARITY)
    if name == "untrained":
        result = measured({2: "Hush.", 6: "Ouch."})
    elif name == "never stops":
        result = measured(stopped=False)
    elif name == "worse than the shelf":
        result["promoted"] = {
            "comparison": {"stop_rate": {"value": -0.2, "low": -0.3, "high": -0.1, "verdict": "worse"}}
        }
    elif name == "oversized":
        result["file_bytes"] = 2_500_000_000
    elif name == "too much memory":
        result["phone"]["resident_bytes"]["4096"] = 4_000_000_000
    elif name == "leak":
        result["split_leaks"] = ["training_data/x.md is in the parts test, train"]
    elif name == "damaged":
        parity["quantised_against_f16"] = {"mean_kl": 3.0, "top1": 0.2}
    elif name == "not a number":
        parity["f16_against_trained"] = {"mean_kl": float("nan"), "top1": 1.0}
    return result, parity


REFUSED = {
    "untrained": "min_gain_over_base",
    "never stops": "end by themselves",
    "worse than the shelf": "worse than the promoted",
    "oversized": "2.5 GB",
    "too much memory": "max_memory_gb",
    "leak": "leaks",
    "damaged": "quantised",
    "not a number": "f16",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_model_is_refused_with_its_reason(name):
    result, parity = planted(name)
    found = gate.reasons(result, GateConfig(), ExportConfig(), parity)
    assert len(found) == 1
    assert REFUSED[name] in found[0]


def test_a_good_model_passes(tmp_path):
    gate.require(measured(), GateConfig(), tmp_path, ExportConfig(), PARITY)


def test_all_reasons_come_at_once_with_exit_code_3(tmp_path):
    result, parity = planted("oversized")
    result["split_leaks"] = ["a leak"]
    with pytest.raises(GateRefused) as refused:
        gate.require(result, GateConfig(), tmp_path, ExportConfig(), parity)
    assert refused.value.exit_code == 3
    assert "2.5 GB" in str(refused.value)
    assert "a leak" in str(refused.value)


def test_minimum_accuracies_come_from_the_config():
    strict = GateConfig(min_call_turn_accuracy=0.9)
    assert not gate.reasons(measured(), strict)
    assert any("min_call_turn_accuracy" in reason for reason in gate.reasons(measured({2: "Hush."}), strict))


def test_a_gate_that_is_off_refuses_nothing(tmp_path):
    gate.require(planted("untrained")[0], GateConfig(enabled=False), tmp_path)
