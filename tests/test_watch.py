"""What `--watch` shows, from the file that training writes."""

from __future__ import annotations

import fcntl
import json
import threading
import time

import pytest

from pipeline import files, watch
from pipeline.errors import UsageError


def entry(step: int, **more) -> dict:
    return {"step": step, "loss": 3.0 / step, "tokens": 100, "seconds": 0.5, "memory": 2_000_000_000, **more}


def metrics(runs, name, *entries):
    path = runs / name / "training" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in entries))
    return path


def test_nothing_trained_yet_is_explained(tmp_path):
    with pytest.raises(UsageError, match="no run has trained"):
        watch.show(tmp_path, "plain")


def test_the_latest_run_is_drawn(tmp_path, capsys):
    metrics(tmp_path, "default-1", entry(1), entry(2, held_out_loss=1.25), entry(3))
    watch.show(tmp_path, "plain")
    out = capsys.readouterr().out
    assert "default-1: step 3" in out and "1.000" in out and "1.250" in out and "200.000" in out and "2.000" in out
    assert watch.spark([3.0, 1.5, 1.0]) in out


def test_json_is_one_event_a_step(tmp_path, capsys):
    metrics(tmp_path, "default-1", entry(1), entry(2))
    watch.show(tmp_path, "json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["event"], line["run"], line["step"]) for line in lines] == [
        ("step", "default-1", 1),
        ("step", "default-1", 2),
    ]


def test_a_run_in_progress_is_followed_to_its_end(tmp_path, capsys):
    path = metrics(tmp_path, "default-1", entry(1))
    lock = (tmp_path / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    watcher = threading.Thread(target=watch.show, args=(tmp_path, "json", 0.01))
    watcher.start()
    with path.open("a") as file:
        file.write(json.dumps(entry(2))[:9])  # torn: not shown yet
        file.flush()
        time.sleep(0.1)
        assert watcher.is_alive()
        file.write(json.dumps(entry(2))[9:] + "\n")
    files.write_json(path.parent.parent / "manifest.json", {"stages": {"training": {}}})
    watcher.join(10)
    assert not watcher.is_alive()
    assert [json.loads(line)["step"] for line in capsys.readouterr().out.splitlines()] == [1, 2]


def test_bars_rise_from_the_smallest_to_the_largest():
    assert watch.spark([1.0, 2.0, 3.0]) == "▁▅█" and watch.spark([5.0, 5.0]) == "▁▁"
    assert len(watch.spark([float(number) for number in range(1000)])) == 60
