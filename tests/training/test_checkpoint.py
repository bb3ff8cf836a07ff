from __future__ import annotations

from pipeline.training import checkpoint
from pipeline.training.checkpoint import Journal, Standing


def make(checkpoints, step, key="k", **standing):
    folder = checkpoint.folder_of(checkpoints, step)
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w%d" % step)
    checkpoint.seal(folder, Standing(key, step, **standing))
    return folder


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    make(tmp_path, 100)
    (make(tmp_path, 200) / "weights").write_bytes(b"torn")
    (make(tmp_path, 300) / "checkpoint.json").write_text("{")
    folder, standing = checkpoint.newest(tmp_path, "k")
    assert folder.name == "checkpoint-000100" and standing.step == 100
    assert checkpoint.newest(tmp_path, "another run") is None


def test_pruning_keeps_the_best_and_the_two_newest(tmp_path):
    for step in (10, 20, 30, 40):
        make(tmp_path, step)
    (tmp_path / ".checkpoint-000050.abc.tmp").mkdir()
    checkpoint.prune(tmp_path, Standing("k", 40, best_loss=1.0, best_step=10))
    assert sorted(path.name[-2:] for path in tmp_path.iterdir()) == ["10", "30", "40"]


def test_the_journal_forgets_what_the_checkpoint_does_not_know(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        journal.append({"step": step, "loss": float(step), "tokens": 10, "seconds": 1.0})
    with journal.path.open("a") as file:
        file.write('{"step": 4, "lo')
    again = Journal(journal.path)
    again.rewind(2)
    assert [entry["step"] for entry in again.entries] == [1, 2] and again.total("tokens") == 20
    assert journal.path.read_text().count("\n") == 2


def test_patience_counts_measurements_without_progress():
    standing = Standing("k", 1)
    for loss in (2.0, 1.0, 1.5, 1.2):
        standing = standing.measured(loss)
    assert standing.best_loss == 1.0 and standing.without_progress == 2
