"""Other words for a player's line: read strictly, checked in their scenario's place, used in training twins only."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.config import DataConfig
from pipeline.data.augment import in_other_words
from pipeline.data.build import build
from pipeline.data.check import check_paths, load_corpus
from pipeline.data.dataset import read_conversations
from tests.data.samples import GOOD, check, write_corpus

LINE = "I creep along the wall, keeping to the shade."
FILE = f"""# PARAPHRASES
## combat/sample
- {LINE}
  - wall, shade, tiptoe. nobody sees me
  - Softly I go, shoulder to the stones.
- Elara takes the bronze key from the hook.
  - Off its hook comes the bronze key, and Elara has it.
"""


def corpus(folder: Path, text: str) -> Path:
    for name, content in (("combat/sample.md", GOOD), ("paraphrases/combat.md", text)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def test_sound_paraphrases_have_no_faults_and_say_their_split(tmp_path: Path) -> None:
    folder = corpus(tmp_path, FILE)
    assert check_paths([folder]) == []
    variants = load_corpus(folder).variants
    assert [one.line.text.split()[0] for one in variants] == ["wall,", "Softly", "Off"]
    assert {one.scenario for one in variants} == {"combat/sample"}


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("no scenario", "## combat/sample", "## combat/simple"),
        ("no player's line", "- I creep along the wall,", "- I creep along the hedge,"),
        ("nothing in other words", "Softly I go, shoulder to the stones.", LINE.upper()),
        ("calls for", "wall, shade, tiptoe. nobody sees me", "I threaten the man by the wall"),
        ("no turn before says", "Off its hook comes the bronze key, and Elara has it.", "Elara has it off its hook."),
        ("take the call out", "Softly I go, shoulder to the stones.", "Softly I go. [roll: stealth]"),
        ("no other words", "  - Off its hook comes the bronze key, and Elara has it.\n", ""),
        ("does not begin", "# PARAPHRASES\n", ""),
        ("no place here", "## combat/sample", "### combat/sample"),
        ("control or invisible", "nobody sees me", "nobody\u200b sees me"),
        ("also stands at", "  - Softly I go, shoulder to the stones.\n", "  - " + "wall shade " * 4 + "\n"),
    ],
)
def test_a_planted_fault_in_a_paraphrase_is_found(tmp_path: Path, what: str, old: str, new: str) -> None:
    text = FILE.replace(old, new)
    assert text != FILE
    if what == "also stands at":
        text = text.replace("wall, shade, tiptoe. nobody sees me", "wall shade " * 4)
    faults = check_paths([corpus(tmp_path, text)])
    assert any(what in str(fault) for fault in faults), faults


def test_a_paraphrase_of_one_line_is_told_at_its_own_place(tmp_path: Path) -> None:
    (fault,) = check_paths([corpus(tmp_path, FILE.replace("Softly I go", "I persuade him, and go"))])
    assert (Path(fault.path).name, fault.line, fault.column, fault.severity) == ("combat.md", 5, 5, "error")


def test_other_words_leave_calls_and_results_as_they_are(tmp_path: Path) -> None:
    scenario = check(GOOD).scenario
    assert scenario
    twin = in_other_words(scenario, load_corpus(corpus(tmp_path, FILE)).variants, random.Random(1))
    changed = [one.text != other.text for one, other in zip(scenario.turns, twin.turns, strict=True)]
    assert [turn.kind for turn, new in zip(twin.turns, changed, strict=True) if new] == ["User", "User"]


def test_paraphrases_are_switched_by_config_and_trained_on_only(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "data", 20)
    originals = {f"{one.id}": one for one in load_corpus(folder).scenarios}
    text = "# PARAPHRASES\n" + "".join(
        f"## {name}\n- Elara takes{one.turns[6].text.partition('takes')[2]}\n  - the bronze key is Elara's now, p{index}q\n"
        for index, (name, one) in enumerate(originals.items())
    )
    (folder / "paraphrases").mkdir()
    (folder / "paraphrases" / "all.md").write_text(text, encoding="utf-8")
    only = {"augmentations": 1, "renaming": False, "dice": False, "hit_points": False}

    def said(**keys: object) -> set[tuple[str, str]]:
        out = tmp_path / f"out{len(keys)}"
        build(DataConfig.model_validate({"folder": folder, **only, **keys}), 7, out)
        return {
            (one.kind, one.split)
            for one in read_conversations(out / "dataset.jsonl")
            if any("the bronze key is Elara's now" in message["content"] for message in one.messages)
        }

    assert said() == {("augmented", "train")}
    assert said(paraphrases=False) == set()
