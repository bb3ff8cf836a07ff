from pathlib import Path

import pytest

from pipeline.config import CONFIGS, load, preset_path
from pipeline.errors import UsageError
from pipeline.flags import assign


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path):
    load(path)


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {epochs: 2, learning_rate: 0.001}")
    config = load(path, {"training": {"epochs": 3}})
    assert (config.training.epochs, config.training.learning_rate, config.training.lora.rank) == (3, 0.001, 32)


def test_every_wrong_key_is_named_at_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {epochs: -1, epoch: 2}\nexport: {quantization: Q3}")
    with pytest.raises(UsageError) as error:
        load(path)
    assert error.value.exit_code == 2
    for key in ("training.epochs", "training.epoch", "export.quantization"):
        assert key in str(error.value)
    assert "-1" in str(error.value) and "Q3" in str(error.value)


@pytest.mark.parametrize("text", ["a: [", "- a list", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match="config"):
        load(path)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(UsageError, match="there is no preset 'fast'") as error:
        preset_path("fast")
    assert "quick" in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(UsageError, match=r"nowhere\.yaml"):
        load(Path("nowhere.yaml"))


@pytest.mark.parametrize(
    ("assignment", "said", "fix"),
    [
        ("base.y=1", "wants keys below 'base', which another flag sets to 'x'", "--set base=value"),
        ("a=[1", "'[1' is not readable YAML", """--set 'a="[1"'"""),
        ("a", "wants key=value, not 'a'", "--set training.epochs=2"),
    ],
)
def test_a_set_that_cannot_be_is_bad_usage_that_says_what_to_write(assignment, said, fix):
    with pytest.raises(UsageError) as error:
        assign({"base": "x"}, assignment)
    assert error.value.exit_code == 2
    assert said in error.value.what and fix in error.value.fix
