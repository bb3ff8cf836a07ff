"""Calls, prose and context of single replies, and the figures made of them."""

import pytest

from pipeline.data.dataset import Message
from pipeline.validation import prose
from pipeline.validation.context import contradictions, leaks
from pipeline.validation.evaluate import judge_all
from pipeline.validation.figures import compare, figures
from pipeline.validation.leaks import leaks as split_leaks
from pipeline.validation.tool_calls import key
from tests.validation.samples import SYSTEM, conversation, replies

GAMES = [conversation(number) for number in range(6)]


def judged(texts=None):
    return judge_all([reply for game in GAMES for reply in replies(game, texts)], GAMES)


def value(name, texts):
    return figures(judged(texts))[name]["value"]


def test_gold_itself_scores_full_marks_everywhere():
    result = figures(judged())
    for name in (
        "tool_call_accuracy",
        "call_turn_accuracy",
        "no_call_accuracy",
        "argument_accuracy",
        "stop_rate",
        "chrf",
    ):
        assert result[name]["value"] == 1, name
    for name in ("calls_invented", "malformed_calls", "repetition", "contradictions", "out_of_character"):
        assert result[name]["value"] == 0, name


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("Nobody sees you.", "call_turn_accuracy", 0.5),
        ("Hush.\n\n[roll: arcana]", "argument_accuracy", 0.5),
        ("Hush.\n\n[check: strength]", "tool_name_accuracy", 0.5),
        ("Hush.\n\n[roll: sneakiness]", "malformed_calls", 0.25),
        ("Hush.\n\n[roll: stealth", "malformed_calls", 0.25),
        ("Hush.\n\n[health: Gandalf, -3]", "contradictions", 0.25),
        ("<TOOLCALL>stealth: 20</TOOLCALL>", "out_of_character", 0.25),
        ("User: what now?", "out_of_character", 0.25),
    ],
)
def test_each_planted_fault_moves_its_figure(text, name, expected):
    assert value(name, {2: text}) == pytest.approx(expected)


def test_a_call_on_a_plain_turn_is_invented():
    assert value("calls_invented", {4: "Quiet.\n\n[roll: stealth]"}) == 0.5


def test_a_loop_counts_as_repetition():
    assert prose.repetition(prose.words("the door opens wide and " * 12)) > 0.8


def test_a_right_call_in_other_words_for_the_item_is_still_a_hit():
    assert key(judged()[0].gold) == "roll: stealth"
    assert key(judged()[2].gold) == "health"
    assert key(()) == "none"


def test_confusion_counts_what_came_instead():
    result = figures(judged({2: "Hm.\n\n[roll: arcana]"}))
    assert result["skill_confusion"] == {"roll: stealth": {"roll: arcana": 6}}
    assert result["by_turn"]["toolcall"]["value"] == 1


def test_a_model_without_calls_is_worse_than_gold_on_the_turns_that_want_one():
    silent = judged({2: "Hush.", 6: "Ouch."})
    found = compare(silent, judged())
    assert found["call_turn_accuracy"]["verdict"] == "worse"
    assert found["no_call_accuracy"]["verdict"] == "undecided"
    assert compare(judged(), silent)["tool_call_accuracy"]["verdict"] == "better"


def test_chrf_is_one_for_equal_and_zero_for_foreign_texts():
    assert prose.chrf("a dark cave", "a dark cave") == 1
    assert prose.chrf("zzz", "a dark cave") == 0
    assert 0 < prose.chrf("a dark cove", "a dark cave") < 1


HISTORY = [
    Message(role="system", content=SYSTEM),
    Message(role="user", content="<TOOLCALL>health: Thordak health reduced by 5</TOOLCALL>"),
]


@pytest.mark.parametrize(
    "text",
    [
        "Elara the dwarf laughs.",
        "That is the wizard Thordak.",
        "Thordak has 12 hit points left.",
        "With a roll of 19 you make it.",
        "A level 9 wizard like you?",
    ],
)
def test_what_contradicts_the_system_block_or_a_result_is_found(text):
    assert contradictions(text, HISTORY)


@pytest.mark.parametrize(
    "text",
    [
        "Elara the elf laughs.",
        "Thordak has 35 hit points left.",
        "Three dwarves walk in, 20 paces away.",
        "The dwarf Elara met yesterday waves.",
        "He takes 5 damage.\n\n[health: player, -5]",
    ],
)
def test_what_agrees_or_says_nothing_is_left_alone(text):
    assert contradictions(text, HISTORY) == ()


@pytest.mark.parametrize(
    "text", ["<|im_end|>", "DM: The door opens.", "## DM\nhello", "As an AI language model, I cannot.", "</TOOLCALL>"]
)
def test_falling_out_of_the_game_is_found(text):
    assert leaks(text)


def test_a_player_in_the_prose_is_no_leak():
    assert leaks("The lute player: a thin man. He looks up.") == ()


def test_a_scenario_on_both_sides_of_the_split_is_a_leak():
    clean = [conversation(0), conversation(1)]
    assert split_leaks(clean) == []
    assert any("is in the parts" in leak for leak in split_leaks([conversation(0), conversation(0, "train")]))


def test_an_exchange_that_was_trained_on_is_a_leak():
    assert any("trained on too" in leak for leak in split_leaks([conversation(0), conversation(1, "train")]))
