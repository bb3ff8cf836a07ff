"""Files that anybody may have written are read in bounded time and memory, or refused with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.data.check import check_paths
from pipeline.data.faults import MAX_PER_FILE, Fault
from tests.data.samples import GOOD


def faults_of(folder: Path, content: bytes) -> list[Fault]:
    path = folder / "combat" / "hostile.md"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return check_paths([folder])


@pytest.mark.parametrize(
    ("code", "content"),
    [
        ("size", b"#" * 1_000_000),
        ("size", b"#\n" * 500_000),
        ("size", b"x" * 100_000_000),
        ("nul", GOOD.encode().replace(b"Nobody", b"No\x00body")),
        ("encoding", GOOD.encode().replace(b"Nobody", b"No\xffbody")),
        ("encoding", GOOD.encode("utf-16")[2:].replace(b"\x00", b"\xfe")),
        ("bom", b"\xef\xbb\xbf" + GOOD.encode()),
        ("crlf", GOOD.replace("\n", "\r\n").encode()),
        ("heading", b"# x\n" * 9_000),
        ("system", b"> " * 3_000 + b"x"),
        ("system", b"[" * 7_000),
        ("system", ("  " * 100 + "- x\n").encode() * 1_000),
        ("empty", b""),
        ("template", GOOD.encode().replace(b"Nobody", b"<|a|>" * 1000)),
    ],
)
def test_hostile_content_gives_a_clear_fault(tmp_path: Path, code: str, content: bytes) -> None:
    found = faults_of(tmp_path, content)
    assert code in {fault.code for fault in found}
    assert len(found) <= MAX_PER_FILE + 1


def test_a_byte_order_mark_or_crlf_hides_no_other_fault(tmp_path: Path) -> None:
    content = GOOD.replace("= *17*", "= *18*").replace("\n", "\r\n").encode()
    assert {fault.code for fault in faults_of(tmp_path, b"\xef\xbb\xbf" + content)} == {"bom", "crlf", "sum"}


def test_links_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    folder = tmp_path / "data" / "combat"
    outside.mkdir()
    folder.mkdir(parents=True)
    (outside / "secret.md").write_text(GOOD)
    (folder / "file.md").symlink_to(outside / "secret.md")
    (folder / "folder").symlink_to(outside)
    (folder / "loop.md").symlink_to(folder / "loop.md")
    found = {Path(fault.path).name: fault.code for fault in check_paths([tmp_path / "data"])}
    assert found == {"file.md": "symlink", "folder": "symlink", "loop.md": "unreadable"}


def test_what_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "combat").mkdir()
    os.mkfifo(tmp_path / "combat" / "pipe.md")
    assert [fault.code for fault in check_paths([tmp_path])] == ["unreadable"]


def test_deeply_nested_folders_are_walked(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 400)
    deep.mkdir(parents=True)
    (deep / "x.md").write_text(GOOD)
    assert check_paths([tmp_path]) == []
