"""What people see: the checker's formats and exit codes, statistics, differences, conversion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config import DataConfig
from pipeline.data.build import build
from pipeline.data.commands import check_command, convert_command, diff_command, stats_command
from pipeline.errors import UsageError
from tests.data.samples import GOOD, write_corpus


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    folder = write_corpus(tmp_path / "data", 4)
    path = folder / "combat" / "s0.md"
    path.write_text(path.read_text().replace("= *17*", "= *18*"))
    return folder


def test_errors_exit_one_and_warnings_zero(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_command([broken]) == 1
    assert "s0.md:19:26: the total is 18 where the numbers make 17" in capsys.readouterr().out
    path = broken / "combat" / "s0.md"
    path.write_text(
        path.read_text().replace("= *18*", "= *17*").replace("+bronze key", "+goose").replace("bronze key\n", "goose\n")
    )
    assert check_command([broken]) == 0
    assert "0 errors, 1 warnings" in capsys.readouterr().out


def test_the_json_format_is_json(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_command([broken], "json")
    body = json.loads(capsys.readouterr().out)
    assert (body["errors"], body["faults"][0]["code"], body["faults"][0]["line"]) == (1, "sum", 19)


def test_the_github_format_is_workflow_commands(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_command([broken], "github")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("::error file=") and "line=19,col=26,title=sum::the total is 18" in line


def test_the_sarif_format_has_a_rule_for_every_result(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_command([broken], "sarif")
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    (result,) = run["results"]
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == "sum"
    assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 19, "startColumn": 26}


def test_an_unknown_format_is_refused(broken: Path) -> None:
    with pytest.raises(UsageError, match="xml"):
        check_command([broken], "xml")


def test_statistics_count_calls_and_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "combat" / "x.md"
    path.parent.mkdir()
    path.write_text(GOOD)
    stats_command([tmp_path])
    lines = [" ".join(line.split()[:-1]) for line in capsys.readouterr().out.splitlines()]
    assert {"roll: stealth 1", "inventory: gain 1", "User 3", "DM with a call 2", "DM without a call 3"} <= set(lines)
    stats_command([tmp_path], tokens=len)
    assert "tokens" in capsys.readouterr().out


def test_the_difference_between_two_runs_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_corpus(tmp_path / "data", 10)
    build(DataConfig(folder=folder), 1, tmp_path / "a" / "data")
    write_corpus(folder, 12)
    build(DataConfig(folder=folder), 1, tmp_path / "b" / "data")
    diff_command(tmp_path / "a", tmp_path / "b")
    out = capsys.readouterr().out
    assert "tools inventory: 10 → 12 (+2)" in out and "digest" in out
    diff_command(tmp_path / "a", tmp_path / "a")
    assert capsys.readouterr().out == "the datasets are the same\n"
    with pytest.raises(UsageError, match="no report"):
        diff_command(tmp_path / "a", tmp_path / "nowhere")


def test_converting_rewrites_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.md"
    path.write_text(GOOD.replace("## ", "# ").replace("# CONVERSATION\n", ""))
    assert convert_command([path]) == 0
    assert path.read_text() == GOOD
    assert convert_command([path]) == 0
    assert "is canonical already" in capsys.readouterr().out
    path.write_text("# USER\nhello\n")
    assert convert_command([path]) == 1
    assert path.read_text() == "# USER\nhello\n"
