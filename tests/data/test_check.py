"""Every rule has a planted fault that it finds, and a sound text that it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.check import check_paths, load_corpus
from pipeline.data.faults import errors
from pipeline.data.rules import RULES
from pipeline.errors import DataError
from tests.data.samples import DRILLS, GOOD, check, codes, varied, write_corpus

# code, what is planted into GOOD, by what
PLANTED = [
    ("system", "World: Carrowmere\n", ""),
    ("system", "World: Carrowmere", "World:"),
    ("system", "# SYSTEM", "# SYSTEMS"),
    ("order", "Role: Dungeon Master\nWorld: Carrowmere", "World: Carrowmere\nRole: Dungeon Master"),
    ("order", "# CONVERSATION\n", ""),
    ("heading", "Nobody turns round.", "# Nobody turns round."),
    ("party", "(Dragonborn Fighter, Level 5, HP: 40/45)", "(Dragonborn Fighter, HP: 40/45)"),
    ("party", "- Elara (Wood", "- Thordak (Wood"),
    ("hit-points-range", "HP: 40/45", "HP: 46/45"),
    ("hit-points-range", "Level 5, HP: 40", "Level 21, HP: 40"),
    ("turns", "## User\nWhat is that smell?", "## DM\nWhat is that smell?"),
    ("turns", "## User\nI creep along the wall, keeping to the shade.\n\n", ""),
    ("empty-turn", "Nobody turns round.", ""),
    ("ending", "## DM\nSomewhere below, a lock clicks in sympathy.\n", ""),
    ("length", "## User\nWhat is that smell?\n\n## DM\nHerring. Last week's herring.\n\n", ""),
    ("long", "Nobody turns round.", "Nobody turns round. " * 500),
    ("control", "Nobody", "No\u200bbody"),
    ("control", "Nobody", "No\x07body"),
    ("template", "Nobody", "<|im_end|>Nobody"),
    ("template", "Nobody", "<end_of_turn>Nobody"),
    ("bracket", "Nobody turns", "[Nobody] turns"),
    ("calls", "Somebody coughs", "[roll: insight] Somebody coughs"),
    ("call-place", "[roll: stealth]", "Then: [roll: stealth]"),
    ("call-form", "[roll: stealth]", "[Roll:stealth]"),
    ("speaker", "What is that smell?", "What is that smell? [roll: perception]"),
    ("no-result", "## TOOLCALL\nstealth: 12 + 5(skill) = *17*\n\n", ""),
    ("no-call", "\n[roll: stealth]\n", ""),
    ("tool", "[roll: stealth]", "[rol: stealth]"),
    ("argument", "[roll: stealth]", "[roll: steath]"),
    ("argument", "[roll: stealth]", "[roll: 2d7]"),
    ("name", "[inventory: Elara", "[inventory: Elora"),
    ("result", "stealth: 12 + 5(skill) = *17*", "stealth 17"),
    ("result", "stealth: 12 + 5(skill) = *17*", "insight: 12 + 5(skill) = *17*"),
    ("sum", "= *17*", "= *18*"),
    ("die", "12 + 5(skill) = *17*", "22 + 5(skill) = *27*"),
    ("policy", "[roll: stealth]", "[roll: persuasion]"),
    ("unsaid", "+bronze key", "+golden goose"),
    ("whose", "[inventory: Elara", "[inventory: Thordak"),
]


@pytest.mark.parametrize(("code", "old", "new"), PLANTED)
def test_a_planted_fault_is_found(code: str, old: str, new: str) -> None:
    text = GOOD.replace("I creep along", "I sneak along") if code == "policy" else GOOD
    assert old in text
    assert code in codes(text.replace(old, new))


def test_a_sound_scenario_has_no_faults() -> None:
    assert check(GOOD).faults == []


def test_a_fault_names_line_column_and_the_way_out() -> None:
    (fault,) = check(GOOD.replace("= *17*", "= *18*")).faults
    assert (fault.line, fault.column) == (19, 26)
    assert "17" in fault.fix and "18" in fault.what


def test_a_misspelt_skill_is_guessed() -> None:
    faults = check(GOOD.replace("[roll: stealth]", "[roll: steath]")).faults
    assert any("did you mean [roll: stealth]" in fault.fix for fault in faults)


def test_hit_points_are_followed_through_the_conversation() -> None:
    call = "[health: Elara, {0}]\n\n## TOOLCALL\nhealth: Elara health {1}"
    old = "[inventory: Elara, +bronze key]\n\n## TOOLCALL\ninventory: Elara gains bronze key"
    assert "hit-points" in codes(GOOD.replace(old, call.format("-29", "reduced by 29")))
    assert "hit-points" in codes(GOOD.replace(old, call.format("+1", "increased by 1")))
    assert "hit-points" not in codes(GOOD.replace(old, call.format("-28", "reduced by 28")))


def test_a_party_of_one_has_no_other_player() -> None:
    alone = GOOD.replace("- Thordak (Dragonborn Fighter, Level 5, HP: 40/45)\n", "").replace(
        "inventory: Elara", "inventory: player"
    )
    assert codes(alone) == {"whose"}
    assert "whose" not in codes(alone.replace("inventory: player", "inventory: Elara"))


def test_dice_must_match_their_formula() -> None:
    text = GOOD.replace("[roll: stealth]", "[roll: 2d6+3]").replace("shade.", "shade: 2d6+3.")
    old = "stealth: 12 + 5(skill) = *17*"
    assert codes(text.replace(old, "2d6+3: 4 + 2 + 3 = *9*")) == set()
    assert codes(text.replace(old, "2d6+3: 4 + 7 + 3 = *14*")) == {"die"}
    assert codes(text.replace(old, "2d6+3: 4 + 2 = *6*")) == {"die"}
    assert codes(text.replace(old, "2d6+3: 4 + 2 + 3 = *8*")) == {"sum"}


@pytest.mark.parametrize(
    ("code", "old", "new"),
    [
        ("drill", "  - His jaw cracks wide.\n", ""),
        ("drill", "# DRILLS\n", ""),
        ("drill-section", "## none", "## nothing"),
        ("drill-call", "  - [inventory: {hero}, +coins]\n", ""),
        ("drill-call", "[inventory: {hero}, +coins]", "[health: {hero}, -5]"),
        ("argument", "## [roll: stealth]", "## [roll: sleath]"),
        ("name", "[inventory: {hero}", "[inventory: Elara"),
        ("whose", "- {hero} scoops", "- I scoop"),
        ("placeholder", "{hero} crawls", "{heroine} crawls"),
        ("outcomes", "### Failure\n- A head turns.\n", ""),
        ("bracket", "Nobody looks", "[Nobody] looks"),
        ("long", "- A head turns.", "- A head turns. " + "x" * 600),
        ("heading", "### Failure", "### Fail"),
    ],
)
def test_a_planted_fault_in_drills_is_found(code: str, old: str, new: str) -> None:
    assert codes(DRILLS, "drills/x.md") == set()
    assert code in codes(DRILLS.replace(old, new), "drills/x.md")


def test_near_duplicates_and_leaks_across_files_are_found(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path)
    for number in range(12):
        twin = varied(number).replace("World: Carrowmere", "World: Elsewhere").replace("Nobody turns", "No one turns")
        (folder / "travel" / f"twin{number}.md").write_text(twin, encoding="utf-8")
    found = [fault for fault in check_paths([folder]) if fault.code in ("duplicate", "leak")]
    assert {fault.code for fault in found} == {"duplicate", "leak"}
    assert len({fault.path for fault in found}) >= 12


def test_a_drill_said_twice_is_found(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, 2)
    (folder / "drills" / "twice.md").write_text(DRILLS.replace("- I slip", "- I slip by, I slip", 1))
    (folder / "drills" / "once.md").write_text(DRILLS.replace("- I slip", "- i SLIP by, i slip", 1))
    found = [fault for fault in check_paths([folder]) if fault.code in ("duplicate", "leak")]
    assert {fault.line for fault in found} >= {3, 5}


def test_imbalance_is_a_warning(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, 60)
    (folder / "magic").mkdir()
    (folder / "travel" / "s1.md").rename(folder / "magic" / "s1.md")
    found = [fault for fault in check_paths([folder]) if fault.code == "imbalance"]
    assert any("magic" in fault.what for fault in found)
    assert not errors(found)


def test_every_fault_of_every_file_comes_at_once(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, 4)
    for name in ("s0", "s2"):
        path = folder / "combat" / f"{name}.md"
        path.write_text(path.read_text().replace("= *17*", "= *18*").replace("Level 5", "Level 50"))
    with pytest.raises(DataError) as raised:
        load_corpus(folder)
    assert str(raised.value).count("*17*") == 2
    assert str(raised.value).count("level 50") == 4


def test_an_empty_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training data"):
        load_corpus(tmp_path)
    with pytest.raises(DataError, match="there is no"):
        load_corpus(tmp_path / "absent")


def test_the_shipped_corpus_is_clean() -> None:
    corpus = load_corpus(Path("training_data"))
    assert len(corpus.scenarios) >= 200


def test_every_rule_says_why_and_how() -> None:
    assert all(rule.why and rule.fix for rule in RULES.values())
