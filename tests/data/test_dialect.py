"""Files in other dialects are read into the same typed form; nothing is lost without a word."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.dialect import convert, convert_source
from pipeline.data.faults import Faults
from pipeline.data.parse import parse_scenario
from pipeline.data.scenario import Kind, PartyMember, Scenario, Turn, render
from pipeline.data.source import Source
from pipeline.data.tools import load_vocabulary
from tests.data.samples import DRILLS, GOOD

SHEETS = """# SYSTEM

**Role**: Dungeon Master
**World**: Testonia
**Location**: The Leaning Mill – upper floor

## Player

- Name: Ada Wren
- Class: Druid
- Level: 2
- Race: Half-Elf (River)
- Sex: Female
- Health: 9/13
- EXP: 25
- STR: 10

## Party

### Bo d’Arc

- Class: Fighter
- Level: 1
- Race: Human (of the hills)
- Health: 14/14

---

# DM

The mill creaks.

# Ada Wren

I look about. [nod: twice]

# DM

**Dust.** [roll: perception] It hangs in the light.

> A note: *beware*

# TOOLCALL

perception: Ada rolls 1d20+3 = 11+3 = 14

# Old Miller

"Who goes?"

## Choices

[add_to_party: Bo]
[transition mill]
"""
INLINE = """# SYSTEM

Role: Dungeon Master
World: Testonia
Location: Bog
Party:

- **Cy** (Male Deep Gnome Rogue, Level 3, HP: 8/8, AC: 15)
- Di (Elf Bard, Level 3, HP: 9/9)

# USER

We wade in.

# USER

Quietly.

# DM

[roll: stealth] and [roll: athletics]

# TOOLCALL

stealth: Cy(17+3=20), Di(8+1=9)
"""
NESTED = SHEETS.replace("### Bo d’Arc\n\n", "- Bo d’Arc\n").replace(
    "- Class: Fighter\n- Level: 1\n- Race: Human (of the hills)\n- Health: 14/14",
    "  - Class: Fighter\n  - Level: 1\n  - Race: Human\n  - Health: 14/14",
)


def read(text: str) -> tuple[Scenario, str, dict[int, str]]:
    converted = convert_source(Source("mill/x.md", text), load_vocabulary())
    assert converted.text is not None and converted.scenario, converted.faults
    return converted.scenario, converted.text, {fault.line: fault.what for fault in converted.faults}


def test_character_sheets_become_a_party() -> None:
    for text in (SHEETS, NESTED):
        scenario, _, _ = read(text)
        assert [member.render() for member in scenario.party] == [
            "- Ada Wren (Half-Elf Druid, Level 2, HP: 9/13)",
            "- Bo d’Arc (Human Fighter, Level 1, HP: 14/14)",
        ]
        assert (scenario.role, scenario.world) == ("Dungeon Master", "Testonia")


def test_npcs_speak_through_the_dm_and_the_player_for_themselves() -> None:
    scenario, _, _ = read(SHEETS)
    assert [turn.kind for turn in scenario.turns] == [Kind.DM, Kind.USER, Kind.DM, Kind.TOOLCALL, Kind.DM]
    assert scenario.turns[-1].text.startswith('Old Miller:\n\n"Who goes?"\n\nChoices')


def test_a_call_moves_to_the_last_line_and_its_result_takes_the_canonical_form() -> None:
    scenario, _, _ = read(SHEETS)
    assert scenario.turns[2].text == "**Dust.** It hangs in the light.\n\nA note: *beware*\n\n[roll: perception]"
    assert scenario.turns[3].text == "perception: 11 + 3(skill) = *14*"


def test_what_has_no_place_is_reported_at_its_line() -> None:
    _, _, faults = read(SHEETS)
    lines = SHEETS.split("\n")
    for part in (
        "## Player",
        "---",
        "[nod: twice]",
        "[roll: perception]",
        "> A note",
        "rolls 1d20",
        "# Old",
        "## Choices",
    ):
        assert next(number for number, line in enumerate(lines, 1) if part in line) in faults, part
    assert sum("not in the vocabulary" in what for what in faults.values()) == 3
    assert "exp" in faults[lines.index("## Player") + 1]


def test_several_rolls_and_calls_are_kept_and_reported() -> None:
    scenario, text, faults = read(INLINE)
    assert scenario.party[0].render() == "- Cy (Deep Gnome Rogue, Level 3, HP: 8/8)"
    assert scenario.turns[0].text == "We wade in.\n\nQuietly."
    assert scenario.turns[1].text == "and (roll: athletics)\n\n[roll: stealth]"
    assert "stealth: Cy(17+3=20), Di(8+1=9)" in text
    assert any("no form" in what for what in faults.values())
    assert any("one call too many" in what for what in faults.values())


def test_conversion_is_idempotent_on_files(tmp_path: Path) -> None:
    for number, text in enumerate((SHEETS, NESTED, INLINE, GOOD)):
        path = tmp_path / f"{number}.md"
        path.write_text(text)
        once = convert(path).text
        assert once is not None
        path.write_text(once)
        again = convert(path)
        assert (again.text, again.faults) == (once, [])


def test_canonical_files_and_drills_come_back_as_they_are(tmp_path: Path) -> None:
    for text, name in ((GOOD, "combat"), (DRILLS, "drills")):
        path = tmp_path / name / "x.md"
        path.parent.mkdir()
        path.write_text(text)
        assert convert(path).text == text


def test_a_sheet_without_hit_points_is_refused_at_its_line() -> None:
    converted = convert_source(Source("a/b.md", SHEETS.replace("- Health: 14/14\n", "")), load_vocabulary())
    assert converted.text is None
    assert [(fault.line, fault.code) for fault in converted.faults if fault.severity == "error"] == [(20, "party")]


WORDS = st.text(st.characters(whitelist_categories=["L", "N"], max_codepoint=0x2FF), min_size=1, max_size=8)
NAMES = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
LINES = st.text(st.characters(blacklist_categories=["C", "Z"], blacklist_characters="#[]<>"), min_size=1, max_size=30)
TEXTS = st.lists(st.one_of(LINES, st.just("")), min_size=1, max_size=4).map("\n".join).map(str.strip).filter(bool)
MEMBERS = st.builds(
    PartyMember, NAMES, NAMES, WORDS, st.integers(1, 20), st.integers(0, 99), st.integers(1, 99), st.just(0), st.just(1)
)
SCENARIOS = st.builds(
    Scenario,
    id=st.just("a/b"),
    path=st.just("a/b.md"),
    category=st.just("a"),
    role=NAMES,
    world=NAMES,
    location=NAMES,
    party=st.lists(MEMBERS, min_size=1, max_size=3).map(tuple),
    turns=st.lists(st.builds(Turn, st.sampled_from(Kind), TEXTS), min_size=1, max_size=5).map(tuple),
)


def without_places(scenario: Scenario) -> tuple[object, ...]:
    people = tuple(member.render() for member in scenario.party)
    turns = tuple((turn.kind, turn.text) for turn in scenario.turns)
    return scenario.id, scenario.system(), people, turns


@given(SCENARIOS)
def test_parse_after_write_is_the_identity(scenario: Scenario) -> None:
    faults = Faults("a/b.md")
    again = parse_scenario(Source("a/b.md", render(scenario)), faults)
    assert again and faults.found == []
    assert without_places(again) == without_places(scenario)
    assert render(again) == render(scenario)
