"""Several processes train as one: the same loss curve, a clear word when one dies, and the way back."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import files
from pipeline.errors import DataError, MachineError, TrainingError, UsageError
from pipeline.training import batches, distributed, launch, loop, plan
from pipeline.training.batches import Family, Sample
from pipeline.training.cluster import Cluster, gather, interface_towards, is_own_address
from pipeline.training.rank import Task
from tests.training.conftest import conversation, write_dataset

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
    assert batches.micro_batch(rows[3][0][0]).labels.tolist()[0] == 1


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


def kill_after_a_step(out: Path, name: str) -> threading.Thread:
    """Send SIGKILL to one of this process's children once a step is in the journal."""

    def wait_and_kill() -> None:
        deadline = time.monotonic() + 300
        while not (out / "checkpoints/checkpoint-000001").is_dir() and time.monotonic() < deadline:
            time.sleep(0.002)
        for process in multiprocessing.active_children():
            if process.name == name:
                os.kill(process.pid, signal.SIGKILL)

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    return thread


@pytest.mark.dear
def test_two_processes_draw_the_curve_of_one_though_one_was_killed(alone, base_of, dataset, calm, tmp_path, stage):
    out = tmp_path / "two"
    task = Task(base_of("llama"), calm, 7, 1, dataset, out)
    killer = kill_after_a_step(out, "rank 1")
    with pytest.raises(TrainingError, match=r"rank 1 of 2 was killed by SIGKILL") as caught:
        launch.train(Cluster(2), task, stage)
    killer.join()
    assert "from the last checkpoint" in str(caught.value) and not multiprocessing.active_children()
    assert 1 <= len(curve(out)) < len(curve(alone))
    made = launch.train(Cluster(2), task, stage)
    assert same(alone, out)
    assert made.path == out / "adapter" and made.sha256 == files.sha256_file(made.path / "adapter_model.safetensors")


@pytest.mark.dear
def test_divided_weights_draw_the_curve_too_and_resume(alone, base_of, dataset, calm, tmp_path, stage):
    task = Task(base_of("llama"), calm.model_copy(update={"distributed": "fsdp"}), 7, 1, dataset, tmp_path / "fsdp")
    launch.train(Cluster(2), task, stage)
    assert same(alone, tmp_path / "fsdp")
    shutil.rmtree(max((tmp_path / "fsdp/checkpoints").glob("checkpoint-*")))
    launch.train(Cluster(2), task, stage)
    assert same(alone, tmp_path / "fsdp")


def test_every_rank_takes_the_plan_that_rank_0_remembers(tmp_path, monkeypatch):
    made = plan.Plan("lora", row_tokens=512, recompute=False, predicted_peak=1, available=2, reason="now")
    earlier = replace(made, row_tokens=256, reason="then")
    plan.remember(tmp_path / "plan.json", "key", earlier)
    sent = []
    monkeypatch.setattr(distributed, "agree", lambda value: sent.append(value) or value)
    assert loop._agreed(made, "key", tmp_path) == earlier
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "agree", lambda value: sent[0])
    assert loop._agreed(made, "key", tmp_path / "scratch") == earlier
    assert not (tmp_path / "scratch").exists()


@pytest.mark.dear
def test_a_known_failure_of_a_rank_keeps_its_words(base_of, calm, tmp_path, stage):
    long = write_dataset(tmp_path / "d.jsonl", [conversation(0), conversation(1, turns=30)])
    with pytest.raises(DataError, match="1 of 2 conversations cannot be trained"):
        launch.train(Cluster(2), Task(base_of("llama"), calm, 7, 1, long, tmp_path / "out"), stage)


def test_a_port_that_is_taken_is_explained():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(MachineError, match="cannot be listened on"),
    ):
        launch.host_store(Cluster(1, 2, "127.0.0.1", taken.getsockname()[1]))


def test_helpers_end_when_the_first_machine_fails_before_training():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = (
        "import sys; from pipeline.training import launch; from pipeline.training.cluster import Cluster;"
        f"store = launch.host_store(Cluster(1, 2, '127.0.0.1', {port})); store.get('visited'); sys.exit('no disk')"
    )
    leader = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL)
    cluster = Cluster(1, 2, "127.0.0.1", port)
    launch._visit(cluster).set("visited", "yes")
    with pytest.raises(TrainingError, match="the first machine has gone before training began"):
        launch.await_start(cluster)
    assert leader.wait(60) == 1


MACHINE = """
import json, os, sys
from pathlib import Path
from pipeline.artifacts import BaseModel, Dataset
from pipeline.config import TrainingConfig
from pipeline.progress import Reporter
from pipeline.training.cluster import gather

def main(nodes, rendezvous, base, data, out, config):
    from pipeline.training import launch
    from pipeline.training.rank import Task
    cluster = gather(1, int(nodes), rendezvous or None, os.environ)
    task = Task(BaseModel("llama", Path(base), "digest-llama", "llama", "none"), TrainingConfig(**json.loads(config)), 7, 1)
    with Reporter("plain", quiet=True).stage("training") as stage:
        if cluster.leads:
            lead = Task(task.base, task.config, 7, 1, Dataset(Path(data), Path(data), "d"), Path(out))
            print("sha256", launch.train(cluster, lead, stage).sha256)
        else:
            launch.follow(cluster, task, stage, launch.await_start(cluster))
            print("helped")

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


class Machines:
    """A program that takes part in training, and what it is given."""

    def __init__(self, folder: Path, base, dataset, config) -> None:
        self.program, self.out = folder / "machine.py", folder / "together"
        self.program.write_text(MACHINE)
        self.inputs = [str(base.path), str(dataset.conversations), str(self.out), config.model_dump_json()]

    def start(self, *prefix: str, nodes: int = 1, rendezvous: str = "") -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [*prefix, str(self.program), str(nodes), rendezvous, *self.inputs]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@pytest.mark.dear
def test_torchrun_starts_the_same_training(alone, base_of, dataset, calm, tmp_path):
    machines = Machines(tmp_path, base_of("llama"), dataset, calm)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = machines.start(*torchrun)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert "sha256" in out and "helped" in out
    assert same(alone, machines.out)


@pytest.fixture
def two_networks():
    """Two network namespaces joined by a cable; removed afterwards."""
    names = [f"dmf{os.getpid()}{side}" for side in "ab"]
    made = (
        subprocess.run(["ip", "netns", "add", names[0]], capture_output=True, text=True) if shutil.which("ip") else None
    )
    if made is None or made.returncode:
        pytest.skip(f"network namespaces are not permitted here: {made.stderr.strip() if made else 'there is no ip'}")
    try:
        script = f"""ip netns add {names[1]}
            ip link add {names[0]} netns {names[0]} type veth peer name {names[1]} netns {names[1]}
            ip -n {names[0]} addr add 10.231.0.1/24 dev {names[0]}
            ip -n {names[1]} addr add 10.231.0.2/24 dev {names[1]}
            for name in {names[0]} {names[1]}; do ip -n $name link set $name up; ip -n $name link set lo up; done"""
        subprocess.run(["sh", "-ec", script], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.dear
def test_two_machines_draw_the_curve_of_one(two_networks, alone, base_of, dataset, calm, tmp_path):
    machines = Machines(tmp_path, base_of("llama"), dataset, calm)
    first, second = (
        machines.start("ip", "netns", "exec", name, sys.executable, nodes=2, rendezvous="10.231.0.1:29400")
        for name in two_networks
    )
    (out, err), (out2, err2) = first.communicate(timeout=900), second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), err + err2
    assert "sha256" in out and "helped" in out2
    assert same(alone, machines.out)
