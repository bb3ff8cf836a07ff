import json

import pytest

from pipeline.progress import Reporter, human_time


def test_plain_lines_go_to_stderr_and_the_result_to_stdout(capsys):
    reporter = Reporter("plain")
    with reporter.stage("training", "smollm2") as stage:
        stage.update(10, 10, loss=2.5)
        stage.summary = "10 steps"
    reporter.result(['modelPath: "./a.gguf"', "mmprojPath: null"])
    out, err = capsys.readouterr()
    assert out == 'modelPath: "./a.gguf"\nmmprojPath: null\n'
    assert "loss 2.5" in err and "10 steps" in err


def test_json_is_one_object_a_line_on_stdout(capsys):
    reporter = Reporter("json")
    with reporter.stage("training") as stage:
        stage.update(1, 2, tokens_per_second=512.0)
    reporter.skipped("export", "nothing changed")
    reporter.result([], modelPath="./a.gguf", mmprojPath=None)
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == [
        "stage_started",
        "progress",
        "stage_finished",
        "stage_skipped",
        "result",
    ]
    assert events[1]["tokens_per_second"] == 512.0
    assert err == ""


def test_a_failed_stage_is_not_called_finished(capsys):
    with pytest.raises(RuntimeError), Reporter("plain").stage("training"):
        raise RuntimeError
    assert "✓" not in capsys.readouterr().err


def test_times_read_as_people_say_them():
    assert [human_time(seconds) for seconds in (3.21, 42, 75, 7260)] == ["3.2 s", "42 s", "1 min 15 s", "2 h 01 min"]


def test_each_part_of_a_stage_has_its_own_pace(capsys, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: clock[0])
    with Reporter("json").stage("validation") as stage:
        for done, unit in ((0, "model"), (100, "model"), (0, "base"), (50, "base")):
            stage.update(done, 100, unit)
            clock[0] += 100 if unit == "model" else 10
    left = [json.loads(line)["seconds_left"] for line in capsys.readouterr().out.splitlines() if '"progress"' in line]
    assert left == [None, 0.0, None, 10.0]
