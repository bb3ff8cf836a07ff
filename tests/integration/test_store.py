"""The shelf: whole or not at all, with a way back."""

import pytest

from pipeline import files
from pipeline.errors import ValidationError
from pipeline.integration import store


def model(folder, content):
    path = folder / f"{content}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path, {"model_name": "custom-dnd-tiny", "sha256": files.sha256_file(path), "run_id": f"run-{content}"}


def promote(tmp_path, content, mmproj=None):
    path, metadata = model(tmp_path / "runs", content)
    store.promote(path, mmproj, metadata, tmp_path / "models", "tiny")
    return metadata


def shipped(tmp_path):
    return (tmp_path / "models" / "custom-dnd-tiny.gguf").read_text()


def test_nothing_is_promoted_at_first(tmp_path):
    assert store.current(tmp_path / "models") is None
    assert store.versions(tmp_path / "models") == []


def test_the_model_before_is_kept_and_comes_back(tmp_path):
    promote(tmp_path, "one")
    promote(tmp_path, "two")
    assert shipped(tmp_path) == "two"
    assert [item["run_id"] for item in store.versions(tmp_path / "models")] == ["run-one"]
    assert store.rollback(tmp_path / "models")["run_id"] == "run-one"
    assert shipped(tmp_path) == "one"
    assert store.current(tmp_path / "models")["run_id"] == "run-one"
    store.rollback(tmp_path / "models")  # and forth again
    assert shipped(tmp_path) == "two"


def test_a_version_is_called_by_run_or_digest(tmp_path):
    first = promote(tmp_path, "one")
    promote(tmp_path, "two")
    promote(tmp_path, "three")
    store.rollback(tmp_path / "models", first["sha256"][:8])
    assert shipped(tmp_path) == "one"
    store.rollback(tmp_path / "models", "run-two")
    assert shipped(tmp_path) == "two"


def test_promoting_the_same_model_again_keeps_nothing(tmp_path):
    promote(tmp_path, "one")
    promote(tmp_path, "one")
    assert store.versions(tmp_path / "models") == []


def test_only_the_last_three_are_kept(tmp_path):
    for name in ("one", "two", "three", "four", "five"):
        promote(tmp_path, name)
    assert len(store.versions(tmp_path / "models")) == 3


def test_the_oldest_kept_model_comes_back_and_none_is_lost(tmp_path):
    for name in ("one", "two", "three", "four"):
        promote(tmp_path, name)
    store.rollback(tmp_path / "models", "run-one")
    assert shipped(tmp_path) == "one"
    assert [item["run_id"] for item in store.versions(tmp_path / "models")] == ["run-four", "run-three", "run-two"]


def test_a_promotion_cut_off_and_run_again_keeps_the_old_model_as_it_was(tmp_path, monkeypatch):
    def die(path, value):
        raise KeyboardInterrupt

    projector = tmp_path / "projector"
    projector.write_text("eye")
    promote(tmp_path, "one", projector)
    write = files.write_json
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        # dies at the new model's metadata, when its file has taken the old one's place
        patch.setattr(
            files, "write_json", lambda path, value: (write if store.VERSIONS in path.parts else die)(path, value)
        )
        promote(tmp_path, "two")
    assert shipped(tmp_path) == "two"
    promote(tmp_path, "two")
    store.rollback(tmp_path / "models")
    assert shipped(tmp_path) == "one"
    assert (tmp_path / "models" / "custom-dnd-tiny-mmproj.gguf").read_text() == "eye"


def test_a_file_that_is_not_what_its_metadata_says_is_not_kept(tmp_path):
    promote(tmp_path, "one")
    shelf = tmp_path / "models" / "custom-dnd-tiny.gguf"
    shelf.unlink()
    shelf.write_text("damaged")
    promote(tmp_path, "two")
    assert store.versions(tmp_path / "models") == []


def test_a_projector_goes_with_its_model(tmp_path):
    projector = tmp_path / "projector"
    projector.write_text("eye")
    promote(tmp_path, "one", projector)
    shelf = tmp_path / "models" / "custom-dnd-tiny-mmproj.gguf"
    assert shelf.read_text() == "eye"
    promote(tmp_path, "two")
    assert not shelf.exists()
    store.rollback(tmp_path / "models")
    assert shelf.read_text() == "eye"


def test_an_unknown_or_damaged_version_changes_nothing(tmp_path):
    first = promote(tmp_path, "one")
    promote(tmp_path, "two")
    with pytest.raises(ValidationError, match="no earlier model"):
        store.rollback(tmp_path / "models", "run-nine")
    kept = tmp_path / "models" / store.VERSIONS / first["sha256"][:12] / "custom-dnd-tiny.gguf"
    kept.unlink()
    kept.write_text("damaged")
    with pytest.raises(ValidationError, match="not what it was"):
        store.rollback(tmp_path / "models")
    assert shipped(tmp_path) == "two"
