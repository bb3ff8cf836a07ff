"""Several processes train as one: the same loss curve, a clear word when one dies, and the way back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.training import batches, distributed, launch, loop
from pipeline.training.batches import Family, Sample
from pipeline.training.cluster import Cluster, gather, interface_towards, is_own_address
from pipeline.training.rank import Task

ROOT = Path(__file__).resolve().parents[2]


def families(*lengths: int) -> list[Family]:
    return [
        Family((Sample(f"c{number}", tuple(range(size)), (1, 2), (1.0, 1.0)),)) for number, size in enumerate(lengths)
    ]


def curve(out: Path) -> list[tuple[float, float | None]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [(entry["loss"], entry.get("held_out_loss")) for entry in map(json.loads, lines)]


def same(one: Path, other: Path) -> bool:
    first, second = curve(one), curve(other)
    assert len(first) == len(second)
    for (loss, held), (loss2, held2) in zip(first, second, strict=True):
        assert loss2 == pytest.approx(loss, abs=1e-3)
        assert (held is None) == (held2 is None) and (held is None or held2 == pytest.approx(held, abs=1e-3))
    return True


@pytest.fixture
def calm(config):
    """A learning rate at which rounding does not grow from step to step."""
    return config.model_copy(update={"learning_rate": 2e-3, "epochs": 1.0, "evaluations": 2, "checkpoint_interval": 1})


@pytest.fixture
def alone(base_of, dataset, calm, tmp_path, stage):
    out = tmp_path / "alone"
    loop.train(dataset, base_of("llama"), calm, seed=7, threads=1, out=out, stage=stage)
    return out


def test_shares_hold_every_conversation_once_and_weigh_alike():
    everything = families(90, 80, 70, 40, 30, 20, 10)
    parts = distributed.divide(everything, 3)
    assert sorted(one.samples[0].id for part in parts for one in part) == [f"c{number}" for number in range(7)]
    loads = [sum(family.tokens for family in part) for part in parts]
    assert max(loads) - min(loads) <= 20


def test_processes_have_equally_many_rows_and_the_last_weighs_nothing():
    step = families(60, 50, 40)
    rows = [distributed.rows_of(step, 64, place, 4) for place in range(4)]
    assert {len(mine) for mine in rows} == {2}
    assert all(mine[-1][1] == 0 and mine[-1][0][0].tokens == 2 for mine in rows)
    assert sorted(row[0].samples[0].id for mine in rows for row, weight in mine if weight) == ["c0", "c1", "c2"]
    assert {weight for mine in rows for _, weight in mine} == {0, 4}
    assert batches.micro_batch(rows[3][0][0]).labels.tolist() == [1]


def test_flags_become_a_cluster():
    assert gather(1, 1, None, {}).size == 1
    assert gather(4, 1, None, {}) == Cluster(4)
    pair = gather(2, 3, "127.0.0.1:29400", {})
    assert (pair.size, pair.host, pair.port, pair.leads) == (6, "127.0.0.1", 29400, True)
    assert not gather(2, 3, "192.0.2.1:29400", {}).leads


def test_what_torchrun_says_becomes_a_cluster():
    said = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    said |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    found = gather(1, 1, None, said)
    assert (found.size, found.machines, found.rank, found.leads, found.hosted) == (4, 2, 3, False, True)
    with pytest.raises(UsageError, match="torchrun has started 4"):
        gather(2, 1, None, said)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 1, None), "--nproc 0"),
        ((1, 2, None), "needs a meeting place"),
        ((2, 1, "a:1"), "needs no meeting place"),
        ((1, 2, "nowhere"), "is no address"),
        ((1, 2, "host:99999"), "is no address"),
    ],
)
def test_impossible_clusters_are_explained(arguments, words):
    with pytest.raises(UsageError, match=words):
        gather(*arguments, {})


def test_a_machine_knows_its_own_addresses():
    assert is_own_address("127.0.0.1") and not is_own_address("192.0.2.1") and not is_own_address("no.such.invalid")
    assert interface_towards("127.0.0.1", 1) in ("lo", "lo0")


def test_two_processes_draw_the_curve_of_one(alone, base_of, dataset, calm, tmp_path, stage):
    task = Task(base_of("llama"), calm, 7, 1, dataset, tmp_path / "two")
    made = launch.train(Cluster(2), task, stage)
    assert same(alone, tmp_path / "two")
    assert made.path == tmp_path / "two" / "adapter" and made.sha256 == distributed.adapter.sha256_of(made.path)


def test_divided_weights_draw_the_curve_too_and_resume(alone, base_of, dataset, calm, tmp_path, stage):
    divided = calm.model_copy(update={"distributed": "fsdp"})
    task = Task(base_of("llama"), divided, 7, 1, dataset, tmp_path / "fsdp")
    launch.train(Cluster(2), task, stage)
    assert same(alone, tmp_path / "fsdp")
    newest = max((tmp_path / "fsdp/checkpoints").glob("checkpoint-*"))
    shutil.rmtree(newest)
    launch.train(Cluster(2), task, stage)
    assert same(alone, tmp_path / "fsdp")
