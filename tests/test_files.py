import json

import pytest

from pipeline import files
from pipeline.errors import MachineError


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "model.gguf"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), files.atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_replaces_a_folder_whole(tmp_path):
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").touch()
    with files.atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_equal_values_are_equal_bytes(tmp_path):
    files.write_json(tmp_path / "a", {"b": 1, "a": "é"})
    files.write_json(tmp_path / "b", {"a": "é", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text()) == {"a": "é", "b": 1}


def test_too_little_space_names_both_numbers(tmp_path):
    with pytest.raises(MachineError, match=r"1000000\.0 GB needed, .* free"):
        files.require_free_space(tmp_path / "not" / "there", 10**15, "a moon")


def test_a_digest_follows_the_content_not_the_order():
    assert files.sha256_json({"a": 1, "b": 2}) == files.sha256_json({"b": 2, "a": 1})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": 2})


def test_removing_a_link_leaves_what_it_points_to(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    files.remove(tmp_path / "link")
    assert (tmp_path / "kept").is_dir()


def test_sizes_read_as_disks_are_sold():
    assert [files.human_size(size) for size in (999, 1_234_567, 2e12)] == ["999 B", "1.2 MB", "2000.0 GB"]
