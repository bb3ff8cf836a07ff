"""The dataset: split by content, drills composed once each, twins sound, equal inputs equal bytes."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from pipeline.config import DataConfig
from pipeline.data.augment import augment, rename, roll_again, vary_sheets
from pipeline.data.build import build, inputs_digest, part_key
from pipeline.data.check import Corpus, check_source, load_corpus
from pipeline.data.compose import choose, choose_families, compose, compose_family
from pipeline.data.dataset import Conversation, read_conversations
from pipeline.data.dice import band, throw, throw_again
from pipeline.data.exercises import Prose, exercises
from pipeline.data.faults import errors
from pipeline.data.scenario import Kind, PartyMember, Scenario, render
from pipeline.data.scene import fit_hit_points
from pipeline.data.settings import load_settings
from pipeline.data.source import Source
from pipeline.data.split import split_of_line, split_of_scenario
from pipeline.data.tools import find_calls, load_vocabulary
from pipeline.errors import DataError
from tests.data.samples import GOOD, check, write_corpus

VOCABULARY = load_vocabulary()
SETTINGS = load_settings()
SHIPPED = Path("training_data")


@pytest.fixture(scope="module")
def shipped() -> Corpus:
    return load_corpus(SHIPPED)


def good() -> Scenario:
    scenario = check(GOOD).scenario
    assert scenario
    return scenario


def built(folder: Path, out: Path, seed: int = 1, **settings: object) -> list[Conversation]:
    config = DataConfig.model_validate({"folder": folder, **settings})
    return read_conversations(build(config, seed, out).conversations)


def test_equal_inputs_give_equal_bytes_and_another_seed_others(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "data")
    config = DataConfig(folder=folder, augmentations=2)
    digests = [build(config, seed, tmp_path / name).digest for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert digests[0] == digests[1] != digests[2]
    assert (tmp_path / "a" / "report.json").read_bytes() == (tmp_path / "b" / "report.json").read_bytes()
    assert json.loads((tmp_path / "a" / "report.json").read_text())["digest"] == digests[0]


def test_adding_a_file_moves_no_other_between_splits(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "data", 20)
    before = {one.id: one.split for one in built(folder, tmp_path / "a") if one.kind == "scenario"}
    write_corpus(folder, 24)
    after = {one.id: one.split for one in built(folder, tmp_path / "b") if one.kind == "scenario"}
    assert len(after) == len(before) + 4
    assert {name: after[name] for name in before} == before


def test_a_held_out_scenario_leaves_the_training_parts_digest_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "data"

    def parts(count: int) -> tuple[dict[str, str], Counter[str]]:
        splits = Counter(one.split for one in built(write_corpus(folder, count), tmp_path / "out"))
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        return {split: report[part_key(split)] for split in ("train", "dev", "test")}, splits

    held_out = 0
    before, split_before = parts(20)
    for count in range(21, 40):
        after, split_after = parts(count)
        (joined,) = split_after - split_before
        held_out += joined != "train"
        assert {split for split in after if after[split] != before[split]} == {joined}
        before, split_before = after, split_after
    assert held_out


def test_the_parts_have_about_the_right_sizes() -> None:
    shares = Counter(split_of_line(f"line number {number}") for number in range(4000))
    assert shares["train"] / 4000 == pytest.approx(0.84, abs=0.02)
    assert shares["test"] / 4000 == pytest.approx(0.10, abs=0.02)


def test_every_category_of_the_shipped_corpus_is_held_out(shipped: Corpus) -> None:
    tested = Counter(scenario.category for scenario in shipped.scenarios if split_of_scenario(scenario) == "test")
    assert set(tested) == {scenario.category for scenario in shipped.scenarios}


def test_every_drill_line_occurs_once_and_in_its_own_part(tmp_path: Path, shipped: Corpus) -> None:
    for split in ("train", "dev", "test"):
        pool = exercises(shipped.drills, split)
        groups = choose(pool, random.Random(1))
        lines = [one.drill.player.text for group in groups for one in group]
        assert len(set(lines)) == len(lines) >= len(pool) - 2
        assert {split_of_line(line) for line in lines} == {split}
        assert {len(group) for group in groups} <= {3, 4, 5, 6}


def test_few_lines_are_balanced_over_calls_and_dealt_once(shipped: Corpus) -> None:
    pool = exercises(shipped.drills, "train")
    groups = choose_families(pool, 240, 11, random.Random(1))
    assert [len(group) for group in groups] == [12] * 20 and all(group[0].drill.call for group in groups)
    assert len({one.drill.player.text for group in groups for one in group}) == 240
    kinds = Counter(one.kind for group in groups for one in group)
    silent = sum(one.drill.call is None for one in pool) / len(pool)
    assert kinds.pop("none") / 240 == pytest.approx(silent, abs=0.01)
    assert max(kinds.values()) - min(kinds.values()) <= 3


def test_a_family_begins_alike_and_every_line_ends_it_in_its_own_way(shipped: Corpus) -> None:
    rng, begun = random.Random(4), 0
    for group in choose_families(exercises(shipped.drills, "train"), 600, 9, rng):
        family = compose_family("x", group, SETTINGS, VOCABULARY, rng)
        begun += len(family) == len(group) - 1
        assert len(family) >= len(group) - 1
        starts = (
            {one.scenario.system() for one in family},
            {one.scenario.turns[: _last_line(one.scenario)] for one in family},
        )
        assert [len(start) for start in starts] == [1, 1]
        for one in family:
            faults = check_source(Source("composed/x.md", render(one.scenario)), VOCABULARY).faults
            assert [fault for fault in errors(faults) if fault.code != "length"] == []
    assert 8 < begun < 30


def test_a_hero_alone_is_the_player_and_nobody_is_beside_them(shipped: Corpus) -> None:
    rng, sizes = random.Random(4), Counter[int]()
    pool = [one for one in exercises(shipped.drills, "train") if not one.needs_an_ally]
    lent = Prose.of(exercises(shipped.drills, "train"))
    assert any("{ally}" in text for text in lent.plain)
    said_player = 0
    for group in choose_families(pool, 1500, 6, rng):
        for one in compose_family("x", group, SETTINGS, VOCABULARY, rng, rng.choice([None, lent])):
            sizes[len(one.scenario.party)] += 1
            said = sum(
                call.arguments.startswith("player") for turn in one.scenario.turns for call in find_calls(turn.text)
            )
            assert not (said and len(one.scenario.party) == 1)
            assert not any("{" in turn.text for turn in one.scenario.turns)
            said_player += said
    assert 0.15 < sizes[1] / sizes.total() < 0.35
    assert said_player


def test_a_drill_that_names_a_second_hero_is_not_played_alone(shipped: Corpus) -> None:
    pool = [one for one in exercises(shipped.drills, "train") if one.needs_an_ally]
    rng = random.Random(4)
    for group in choose_families(pool, 300, 6, rng):
        for one in compose_family("x", group, SETTINGS, VOCABULARY, rng):
            assert len(one.scenario.party) > 1


def test_players_say_a_short_name_and_calls_the_whole_one(shipped: Corpus) -> None:
    rng, whole, small = random.Random(4), 0, 0
    pool = [one for one in exercises(shipped.drills, "train") if "{hero}" in one.drill.player.text and one.drill.call]
    for group in choose_families(pool, 2000, 6, rng):
        for one in compose_family("x", group, SETTINGS, VOCABULARY, rng):
            line = next(turn.text for turn in reversed(one.scenario.turns) if turn.kind is Kind.USER)
            for call in (call for turn in one.scenario.turns for call in find_calls(turn.text)):
                name = call.arguments.split(",")[0]
                if call.tool == "spellcast" and " " in name:
                    assert name in one.scenario.names and name not in line
                    assert SETTINGS.short(name).casefold() in line.casefold()
                    whole += 1
            small += line == line.casefold()
    assert whole
    assert small > 50


def test_a_name_keeps_its_first_part_where_it_has_no_title() -> None:
    assert [SETTINGS.short(name) for name in ("Sister Morwen", "Elara Grey", "Nyx", "Old")] == [
        "Morwen",
        "Elara",
        "Nyx",
        "Old",
    ]


def _last_line(scenario: Scenario) -> int:
    """Where the last thing that the player says stands among the turns."""
    return max(at for at, turn in enumerate(scenario.turns) if turn.kind is Kind.USER)


def test_borrowed_prose_leaves_the_players_line_and_its_call(tmp_path: Path) -> None:
    conversations = built(write_corpus(tmp_path / "data", 40), tmp_path / "out")
    drills = [one for one in conversations if one.kind == "drills" and one.split == "train"]

    def asked(borrowed: bool) -> set[tuple[str, str]]:
        return {
            (one.messages[index]["content"], find_calls(one.messages[index + 1]["content"])[0].tool)
            for one in drills
            if one.call_only == borrowed
            for index in range(1, len(one.messages) - 1, 2)
            if find_calls(one.messages[index + 1]["content"])
        }

    own, borrowed = asked(False), asked(True)
    assert {tool for _, tool in own} == {tool for _, tool in borrowed} and len(borrowed) > 10
    spoken = {one.messages[2]["content"] for one in drills if not one.call_only}
    assert any(one.messages[2]["content"] not in spoken for one in drills if one.call_only)
    without = built(tmp_path / "data", tmp_path / "without", borrowed_prose=0)
    assert not any(one.call_only for one in without)


def test_every_composed_conversation_passes_the_checker(shipped: Corpus) -> None:
    rng = random.Random(3)
    ends = []
    for group in choose(exercises(shipped.drills, "train"), rng)[:300]:
        composed = compose("x", group, SETTINGS, VOCABULARY, rng)
        assert errors(check_source(Source("composed/x.md", render(composed.scenario)), VOCABULARY).faults) == []
        if group[-1].drill.call:
            ends.append(composed.ends_on_call)
    assert 0.08 < sum(ends) / len(ends) < 0.22


def test_no_placeholder_survives_and_held_out_lines_are_not_trained_on(tmp_path: Path) -> None:
    conversations = built(write_corpus(tmp_path / "data", 30), tmp_path / "out", augmentations=1)
    said: dict[str, set[str]] = {"train": set(), "dev": set(), "test": set()}
    for one in conversations:
        assert not any("{" in message["content"] for message in one.messages)
        said[one.split] |= {m["content"] for m in one.messages if m["role"] == "user" and "<TOOL" not in m["content"]}
    unique = {line for line in said["test"] if " q" in line or "w" in line}
    assert unique and not {line for line in unique if line in said["train"] and line not in GOOD}


def test_a_check_that_fails_is_told_as_a_failure() -> None:
    matched = VOCABULARY.match(find_calls("[roll: stealth]")[0])
    assert matched
    rng = random.Random(0)
    for _ in range(200):
        text, well = throw(matched, rng)
        total = int(text.split("*")[1])
        assert well == (total >= 14) and not 11 < total < 14
        assert VOCABULARY.match_result(matched, text)


def test_dice_thrown_again_keep_their_outcome() -> None:
    rng = random.Random(0)
    for die in range(1, 21):
        values = throw_again({"d20": str(die), "modifier": "3", "total": str(die + 3)}, rng)
        assert band(int(values["total"])) == band(die + 3)
        assert int(values["d20"]) + 3 == int(values["total"])
        assert (values["d20"] in ("1", "20")) == (die in (1, 20))


def test_hit_points_are_fitted_to_what_happens() -> None:
    member = PartyMember("A", "Elf", "Bard", 1, 10, 10)
    for changes in ([-30], [40], [-5, 9, -40], []):
        fitted = fit_hit_points(member, changes, random.Random(0))
        now = fitted.hit_points
        for change in changes:
            assert 0 <= now <= fitted.max_hit_points
            now += change
        assert 0 <= now <= fitted.max_hit_points


def test_renaming_is_consistent_and_leaves_common_words_alone() -> None:
    twin = rename(good(), SETTINGS, random.Random(1))
    text = render(twin)
    assert "Elara" not in text and "Thordak" not in text and "Carrowmere" not in text
    assert text.count(twin.party[1].name) == GOOD.count("Elara")
    ordinary = GOOD.replace("What is that smell?", "What is that elara smell?")
    assert "Elara" in render(rename(check(ordinary).scenario, SETTINGS, random.Random(1)))  # type: ignore[arg-type]


def test_dice_and_sheets_change_only_where_nobody_speaks_of_them() -> None:
    rng = random.Random(4)
    assert render(roll_again(good(), VOCABULARY, rng)) != GOOD
    told = check(GOOD.replace("Nobody turns round.", "With 17, nobody turns round.")).scenario
    assert told and roll_again(told, VOCABULARY, rng).turns == told.turns
    assert vary_sheets(good(), VOCABULARY, rng).party != good().party
    told = check(GOOD.replace("What is that smell?", "How many hit points have I?")).scenario
    assert told and vary_sheets(told, VOCABULARY, rng).party == told.party


def test_every_twin_of_the_shipped_corpus_is_sound_and_trained_on_only(shipped: Corpus) -> None:
    config = DataConfig(augmentations=1)
    made = 0
    for scenario in shipped.scenarios[::3]:
        for twin in augment(scenario, config, SETTINGS, VOCABULARY, 7):
            made += 1
            assert errors(check_source(Source(scenario.path, render(twin)), VOCABULARY).faults) == []
            assert [str(call) for turn in twin.turns for call in find_calls(turn.text)].__len__() == len(
                [call for turn in scenario.turns for call in find_calls(turn.text)]
            )
    assert made > len(shipped.scenarios) / 4


def test_augmentation_is_switched_by_config(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "data", 20)
    assert not [one for one in built(folder, tmp_path / "a") if one.kind == "augmented"]
    twins = [one for one in built(folder, tmp_path / "b", augmentations=1) if one.kind == "augmented"]
    assert twins and {one.split for one in twins} == {"train"}
    off = {"augmentations": 1, "renaming": False, "dice": False, "hit_points": False}
    assert not [one for one in built(folder, tmp_path / "c", **off) if one.kind == "augmented"]


def test_weights_favour_the_rare(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "data", 40)
    for path in sorted((folder / "travel").glob("*.md"))[4:]:
        path.unlink()
    conversations = [one for one in built(folder, tmp_path / "out") if one.kind == "scenario" and one.split == "train"]
    weights = {one.category: one.weight for one in conversations}
    assert weights["travel"] > weights["combat"]
    assert all(0.15 <= one.weight <= 0.6 for one in conversations)  # 0.5…2 times data.scenario_weight


def test_the_inputs_digest_follows_every_file_and_setting(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "data", 2)
    config = DataConfig(folder=folder)
    before = inputs_digest(config)
    assert inputs_digest(config) == before
    assert inputs_digest(DataConfig(folder=folder, augmentations=1)) != before
    (folder / "combat" / "s0.md").write_text(GOOD)
    assert inputs_digest(config) != before


def test_faults_stop_the_stage_before_anything_is_written(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "data", 2)
    path = folder / "combat" / "s0.md"
    path.write_text(path.read_text().replace("= *17*", "= *18*"))
    with pytest.raises(DataError, match="total is 18"):
        built(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_dataset_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "dataset.jsonl"
    path.write_text('{"id": "x"}\n')
    with pytest.raises(DataError, match="not a conversation"):
        read_conversations(path)
