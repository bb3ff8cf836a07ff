"""The source of llama.cpp is taken whole and pinned, or not at all."""

import os
import tarfile
from pathlib import Path

import pytest

from pipeline import files
from pipeline.environment import llama_source
from pipeline.errors import MachineError, UsageError
from pipeline.progress import Reporter
from tests.environment import mini


def test_an_archive_gives_only_the_parts_that_the_build_needs(tmp_path: Path) -> None:
    packed = mini.archive(mini.tree(tmp_path / "tree"), tmp_path / "a.tar.gz")
    target = _provide(tmp_path, packed)
    assert (target / "src/tool.cpp").is_file()
    assert not (target / "docs").exists()


def test_a_folder_and_an_archive_of_the_same_commit_give_the_same_tree(tmp_path: Path) -> None:
    folder = mini.tree(tmp_path / "tree")
    first = _provide(tmp_path, folder, "first")
    second = _provide(tmp_path, mini.archive(folder, tmp_path / "a.tar.gz"), "second")
    assert llama_source.tree_digest(first) == llama_source.tree_digest(second)


def test_a_tree_with_one_changed_byte_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    changed = mini.tree(tmp_path / "changed", tool="int main() { return 1; }\n")
    with pytest.raises(MachineError, match=r"this is not llama\.cpp 1234567890"):
        _provide(tmp_path, changed)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", ["package-1.0/vendor/llama.cpp/src/../../../../evil.cpp", "/etc/evil"])
def test_a_path_that_leaves_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = 4
    packed = mini.archive(mini.tree(tmp_path / "tree"), tmp_path / "a.tar.gz", entry)
    with pytest.raises(MachineError, match="leaves its folder"):
        _provide(tmp_path, packed)
    assert not (tmp_path / "target").exists()
    assert not (tmp_path / "evil.cpp").exists()


def test_a_link_among_the_sources_is_refused(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("package-1.0/vendor/llama.cpp/src/link.cpp")
    entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    packed = mini.archive(mini.tree(tmp_path / "tree"), tmp_path / "a.tar.gz", entry)
    with pytest.raises(MachineError, match="link or device"):
        _provide(tmp_path, packed)


def test_an_archive_cut_short_is_explained(tmp_path: Path) -> None:
    packed = mini.archive(mini.tree(tmp_path / "tree"), tmp_path / "a.tar.gz")
    packed.write_bytes(packed.read_bytes()[:-200])
    with pytest.raises(MachineError, match="cannot be unpacked"):
        _provide(tmp_path, packed)
    assert not (tmp_path / "target").exists()


def test_something_that_is_not_llama_cpp_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no convert_hf_to_gguf\.py"):
        _provide(tmp_path, tmp_path / "empty", pinned=False)
    with pytest.raises(UsageError, match="there is no"):
        _provide(tmp_path, tmp_path / "absent", pinned=False)


def test_pip_fetches_the_archive_without_running_any_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = _published(tmp_path, monkeypatch)
    with Reporter("plain", quiet=True).stage("llama.cpp") as stage:
        path = llama_source.archive(tmp_path / "downloads", stage, pin)
        monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
        assert llama_source.archive(tmp_path / "downloads", stage, pin) == path
    assert not (tmp_path / "ran").exists()


def test_a_damaged_download_is_noticed_and_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = _published(tmp_path, monkeypatch)
    files.write_text(tmp_path / "downloads" / pin.archive, "damaged")
    with Reporter("plain", quiet=True).stage("llama.cpp") as stage:
        path = llama_source.archive(tmp_path / "downloads", stage, pin)
    assert files.sha256_file(path) == pin.sha256


def test_another_file_under_the_pinned_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _published(tmp_path, monkeypatch)
    other = llama_source.Pin("mini_package", "1.0", "f" * 64, mini.COMMIT, "")
    with pytest.raises(MachineError, match="is not the pinned file"), Reporter("plain", quiet=True).stage("x") as stage:
        llama_source.archive(tmp_path / "downloads", stage, other)
    assert not (tmp_path / "downloads" / other.archive).exists()


def test_no_network_is_explained_and_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _offline(monkeypatch, tmp_path)
    pin = llama_source.Pin("mini_package", "1.0", "0" * 64, mini.COMMIT, "")
    with pytest.raises(MachineError, match="no network") as caught, Reporter("plain", quiet=True).stage("x") as stage:
        llama_source.archive(tmp_path / "downloads", stage, pin)
    assert "--llama-source" in str(caught.value)


def _provide(root: Path, source: Path, target: str = "target", pinned: bool = True) -> Path:
    pin = mini.recipe(root, root / "tree").pin if pinned else llama_source.PIN
    with Reporter("plain", quiet=True).stage("llama.cpp") as stage:
        llama_source.provide(source, root / target, root / "downloads", stage, pin)
    return root / target


def _offline(monkeypatch: pytest.MonkeyPatch, links: Path) -> None:
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links), "PIP_CONFIG_FILE": os.devnull}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def _published(root: Path, monkeypatch: pytest.MonkeyPatch) -> llama_source.Pin:
    """A source distribution that would leave a trace if pip ran its build."""
    folder = mini.tree(root / "package" / "vendor" / "llama.cpp").parent.parent
    files.write_text(folder / "PKG-INFO", "Metadata-Version: 2.1\nName: mini-package\nVersion: 1.0\n")
    files.write_text(folder / "setup.py", f"open({str(root / 'ran')!r}, 'w')\n")
    backend = '[build-system]\nrequires = ["scikit-build-core"]\nbuild-backend = "scikit_build_core.build"\n'
    files.write_text(folder / "pyproject.toml", backend)
    path = root / "links" / "mini_package-1.0.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as bundle:
        bundle.add(folder, "mini_package-1.0")
    _offline(monkeypatch, path.parent)
    return llama_source.Pin("mini_package", "1.0", files.sha256_file(path), mini.COMMIT, "")
