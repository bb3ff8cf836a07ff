"""Real tiny GGUFs, played by the real server: figures, games, phone figures, and the gate on what was measured."""

import json

import pytest

from pipeline.config import ExportConfig, GateConfig, ValidationConfig, load, preset_path
from pipeline.data.tools import find_calls
from pipeline.errors import DataError, GateRefused, UsageError, ValidationError
from pipeline.game import Table
from pipeline.integration.grammar import for_messages
from pipeline.llama_server import serve
from pipeline.validation import gate, phone
from pipeline.validation.evaluate import fair_share, held_out, validate
from pipeline.validation.games import figures, play_freely
from pipeline.validation.judge_file import judge_file, lines
from pipeline.validation.perplexity import perplexity, scored
from tests import tiny_gguf
from tests.validation.samples import SYSTEM, conversation

CONFIG = ValidationConfig(
    slots=2, context=1024, max_reply_tokens=8, free_games=1, grammar_conversations=1, perplexity_conversations=1
)
ONLY_TURNS = CONFIG.model_copy(update={"free_games": 0, "grammar_conversations": 0, "phone": False})


@pytest.fixture(scope="module")
def babble(tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("babble") / "babble.gguf")


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("silent") / "silent.gguf", always="<|im_end|>")


@pytest.fixture(scope="module")
def measured(babble, silent, llama, stage, tmp_path_factory):
    out = tmp_path_factory.mktemp("validation")
    games = [conversation(0), conversation(1, category="combat"), conversation(2, "train", "rest")]
    grammar_of = lambda game: for_messages(game.messages)  # noqa: E731
    return out, validate(silent, babble, games, llama, CONFIG, 1, out, stage, promoted=babble, grammar_of=grammar_of)


def test_a_silent_model_is_right_exactly_where_no_call_is_wanted(measured):
    _, result = measured
    assert result["tool_call_accuracy"]["value"] == 0.5
    assert result["call_turn_accuracy"]["value"] == 0
    assert result["no_call_accuracy"]["value"] == 1
    assert result["stop_rate"]["value"] == 1


def test_base_and_shelf_play_the_same_turns_in_the_same_run(measured):
    out, result = measured
    rows = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    for name in ("model", "baseline", "promoted"):
        assert sum(row["model"] == name for row in rows) == 8
    assert any(row["model"] == "free game" for row in rows)
    assert result["baseline"]["comparison"]["stop_rate"]["value"] > 0.5


def test_every_figure_the_report_needs_is_measured(measured):
    _, result = measured
    assert result["perplexity"]["tokens"] > 100
    assert result["baseline"]["perplexity"]["value"] > 1
    assert result["grammar"]["conversations"] == 1
    assert result["phone"]["resident_bytes"]["4096"] >= 1_000_000
    assert result["phone"]["seconds_to_first_token"] >= 0


def test_an_untrained_model_is_refused_by_the_gate(measured, tmp_path):
    _, result = measured
    with pytest.raises(GateRefused):
        gate.require(result, GateConfig(min_tool_call_accuracy=0.6), tmp_path, ExportConfig())


def test_an_oversized_model_is_refused_by_the_gate(measured):
    _, result = measured
    found = gate.reasons(result, GateConfig(min_gain_over_base=-1), ExportConfig(max_size_gb=0.0001))
    assert any("max_size_gb" in reason for reason in found)


@pytest.fixture(scope="module")
def worse(babble, silent, llama, stage, tmp_path_factory):
    """A model of noise, where the model on the shelf at least ends its replies; five games, so that it can be told."""
    out = tmp_path_factory.mktemp("worse")
    games = [conversation(number) for number in range(5)]
    config = ONLY_TURNS.model_copy(update={"exact_conversations": 2})
    return validate(babble, silent, games, llama, config, 1, out, stage, promoted=silent, exact=babble)


def test_a_model_worse_than_the_shipped_one_is_refused_by_the_paired_bootstrap(worse):
    compared = worse["promoted"]["comparison"]["stop_rate"]
    assert (compared["verdict"], compared["turns"]) == ("worse", 20)
    found = gate.reasons(worse, GateConfig(min_gain_over_base=-1, min_stop_rate=0), ExportConfig())
    assert any("worse than the promoted" in reason for reason in found)
    shelf_may_get_worse = GateConfig(min_gain_over_base=-1, min_stop_rate=0, not_worse_than_promoted=False)
    assert not gate.reasons(worse, shelf_may_get_worse, ExportConfig())


def test_a_file_of_noise_is_refused_by_every_presets_gate(worse):
    for preset in ("default", "quick", "best"):
        found = gate.reasons(worse, load(preset_path(preset)).gate, ExportConfig())
        assert any("end by themselves" in reason for reason in found), preset


def test_a_file_that_never_calls_is_refused_where_calls_are_promised(measured):
    _, result = measured
    for preset in ("default", "best"):
        found = gate.reasons(result, load(preset_path(preset)).gate, ExportConfig())
        assert any("min_call_turn_accuracy" in reason for reason in found), preset


def test_the_unshrunk_file_plays_as_many_games_as_asked(worse, measured):
    assert worse["exact"]["tool_call_accuracy"]["turns"] == 8
    assert worse["exact"]["comparison"]["stop_rate"]["value"] == 0  # it is the same file
    assert "exact" not in measured[1]


def test_a_truncated_file_is_a_failure_in_words(silent, llama, stage, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(silent.read_bytes()[:200_000])
    with pytest.raises(ValidationError, match="died"):
        validate(broken, silent, [conversation(0)], llama, CONFIG, 1, tmp_path, stage)


def test_eval_prints_figures_for_any_file_and_refuses_nothing_at_all(silent, llama, stage):
    result = judge_file(silent, [conversation(5)], llama, CONFIG, 1, stage)
    assert any("no call accuracy     1.000" in line for line in lines(result))
    with pytest.raises(UsageError, match="no DM turn"):
        judge_file(silent, [], llama, CONFIG, 1, stage)
    with pytest.raises(UsageError, match="no model"):
        judge_file(silent.with_name("none.gguf"), [conversation(5)], llama, CONFIG, 1, stage)


def test_a_free_game_ends_after_as_many_turns_as_gold_has(silent, llama):
    with serve(llama, silent, threads=1, context=1024) as server:
        played = play_freely([server], [conversation(0)], max_tokens=8, seed=1)
    assert len(played) == 2  # it never calls, so only the players' lines are answered
    assert figures(played)["stop_rate"]["value"] == 1


def test_the_perplexity_of_a_random_model_is_near_the_size_of_its_vocabulary(babble, llama):
    with serve(llama, babble, threads=1, context=1024) as server:
        text = scored(server, conversation(0).messages)
    found = perplexity(babble, [text], llama, 1)
    assert 150 < found["value"] < 1500
    gold = sum(
        len(message["content"].encode()) for message in conversation(0).messages if message["role"] == "assistant"
    )
    assert found["tokens"] == gold  # this vocabulary writes each byte as one token


def test_an_empty_test_split_is_said_so():
    with pytest.raises(DataError, match="test split is empty"):
        held_out([conversation(0, "train")], None)


def test_a_limit_takes_from_every_category():
    games = [conversation(number, category=category) for category in ("a", "b") for number in range(3)]
    assert {game.category for game in fair_share(games, 2)} == {"a", "b"}
    assert len(fair_share(games, None)) == 6


@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        ("[roll: stealth]", r"stealth: \d+ \+ \d+\(skill\) = \*\d+\*"),
        ("[roll: 2d6+3]", r"2d6\+3: \d \+ \d \+ 3 = \*\d+\*"),
        ("[check: strength]", r"strength: \d+ \+ \d+\(ability\) = \*\d+\*"),
        ("[health: Elara, -5]", "health: Elara health reduced by 5"),
        ("[inventory: player, +silver key]", "inventory: player gains silver key"),
        ("[spellcast: Elara, Fire Bolt]", "spellcast: Elara casts Fire Bolt"),
    ],
)
def test_calls_are_executed_with_the_vocabularys_own_results(call, pattern):
    import re

    first, second = (Table(SYSTEM, 3).execute(find_calls(call)[0]) for _ in range(2))
    assert first == second
    assert first is not None
    assert re.fullmatch(pattern, first)
    if "=" in first:
        numbers, total = first.split("=")
        assert sum(map(int, re.findall(r"(?<![d\d])\d+(?!d)", numbers.split(":")[1]))) == int(total.strip(" *"))


@pytest.mark.parametrize("call", ["[roll: sneakiness]", "[health: Gandalf, -5]", "[summon: bear]"])
def test_what_the_table_does_not_know_is_not_executed(call):
    assert Table(SYSTEM, 3).execute(find_calls(call)[0]) is None


def test_memory_decides_the_phone():
    assert phone.smallest_phone(900_000_000) == 2
    assert phone.smallest_phone(2_500_000_000) == 6
    assert phone.smallest_phone(20_000_000_000) is None
    assert "any phone" in phone.statement(20_000_000_000)
