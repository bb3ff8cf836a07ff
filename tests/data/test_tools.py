"""The vocabulary is data, and calls are found and compared as the app does it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.data.check import check_source
from pipeline.data.source import Source
from pipeline.data.tools import VOCABULARY, Call, calls_match, find_calls, load_vocabulary, parse_dice
from pipeline.errors import DataError
from tests.data.samples import GOOD


def test_calls_are_found_as_the_app_finds_them() -> None:
    assert find_calls("a [ROLL:  stealth ] b [x_1:y] [no colon] [ä: x] [a:]") == [
        Call("roll", "stealth"),
        Call("x_1", "y"),
    ]


def test_items_match_when_they_share_a_content_word() -> None:
    gold = find_calls("[inventory: Elara, +silver key]")
    assert calls_match(gold, find_calls("[inventory: Elara, +the key of silver]"))
    assert not calls_match(gold, find_calls("[inventory: Elara, +the torch]"))
    assert not calls_match(gold, find_calls("[inventory: Elara, -silver key]"))
    assert not calls_match(gold, find_calls("[inventory: Thordak, +silver key]"))


def test_other_arguments_must_be_equal_and_in_order() -> None:
    both = find_calls("[roll: stealth] [check: wisdom]")
    assert calls_match(both, both)
    assert calls_match([], [])
    assert not calls_match(both, both[::-1])
    assert not calls_match(both, both[:1])
    assert not calls_match(find_calls("[spellcast: A, Fire Bolt]"), find_calls("[spellcast: A, Ray Bolt]"))


def test_every_example_of_the_shipped_vocabulary_fits() -> None:
    assert load_vocabulary().names == ("roll", "check", "health", "inventory", "spellcast")


def test_a_formula_is_taken_apart() -> None:
    assert [parse_dice(text) for text in ("2d6+3", "1d20", "10d8-2")] == [(2, 6, 3), (1, 20, 0), (10, 8, -2)]


def _with_gold(folder: Path) -> Path:
    content = yaml.safe_load(VOCABULARY.read_text())
    content["tools"].append(
        {
            "name": "gold",
            "description": "Pays or earns coins.",
            "forms": [{"name": "gain", "call": "{name}, +{amount}", "result": "gold: {name} has {amount} more"}],
            "examples": [{"call": "[gold: Elara, +5]", "result": "gold: Elara has 5 more"}],
        }
    )
    path = folder / "tools.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_new_tool_is_one_entry(tmp_path: Path) -> None:
    text = GOOD.replace("[inventory: Elara, +bronze key]", "[gold: Elara, +5]").replace(
        "inventory: Elara gains bronze key", "gold: Elara has 5 more"
    )
    source = Source("combat/x.md", text.replace("takes the bronze key", "takes 5 coins"))
    assert {fault.code for fault in check_source(source, load_vocabulary()).faults} == {"tool"}
    assert check_source(source, load_vocabulary(_with_gold(tmp_path))).faults == []


def test_a_broken_vocabulary_is_explained(tmp_path: Path) -> None:
    path = _with_gold(tmp_path)
    path.write_text(path.read_text().replace("gold: Elara has 5 more", "gold: Elara is rich"))
    with pytest.raises(DataError, match="fits none of its forms"):
        load_vocabulary(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_vocabulary(tmp_path / "absent.yaml")
