"""What runs beyond one machine: the manifests fit the published types, and every place runs the command there is."""

import copy
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api import models
from pydantic import ValidationError

DEPLOY = Path(__file__).parents[1] / "deploy"
TYPES = {
    "PersistentVolumeClaim": models.IoK8sApiCoreV1PersistentVolumeClaim,
    "Service": models.IoK8sApiCoreV1Service,
    "Job": models.IoK8sApiBatchV1Job,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
    "TrainJob": models.TrainerV1alpha1TrainJob,
}


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


MANIFESTS = [document for name in ("kubernetes.yaml", "trainjob.yaml") for document in documents(name)]
JOB = next(document for document in MANIFESTS if document["kind"] == "Job")
RUNTIME = next(document for document in MANIFESTS if document["kind"] == "TrainingRuntime")
SKY = documents("skypilot.yaml")[0]


def require_type(document):
    """The type reads it all: wrong values raise ValidationError, and a key that it does not know would be lost."""
    read = TYPES[document["kind"]].from_dict(document).to_dict()
    assert read == document


@pytest.mark.parametrize("document", MANIFESTS, ids=lambda document: document["kind"])
def test_a_manifest_is_of_its_published_type(document):
    require_type(document)


def test_planted_faults_do_not_pass():
    for path, value in (
        (("spec", "completions"), "2"),
        (("spec", "template", "spec", "containers", 0, "name"), 1),
        (("spec", "template", "spec", "restartPolicies"), "OnFailure"),
        (("spec", "template", "spec", "containers", 0, "volumes"), []),
    ):
        spoilt = part = copy.deepcopy(JOB)
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        with pytest.raises((ValidationError, AssertionError)):
            require_type(spoilt)


def pods():
    yield JOB["spec"]["template"]["spec"]
    yield RUNTIME["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("pod", pods(), ids=["Job", "TrainingRuntime"])
def test_pods_have_no_rights_they_do_not_need(pod):
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in pod["containers"]:
        rights = container["securityContext"]
        assert (rights["allowPrivilegeEscalation"], rights["readOnlyRootFilesystem"]) == (False, True)
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_parts_of_the_job_fit_together():
    claim, service = MANIFESTS[:2]
    pod = JOB["spec"]["template"]["spec"]
    script = pod["containers"][0]["args"][0]
    name, port = JOB["metadata"]["name"], service["spec"]["ports"][0]["port"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert f"--rendezvous {name}-0.{pod['subdomain']}:{port}" in script
    assert f"--nnodes {JOB['spec']['completions']} " in script
    assert JOB["spec"]["parallelism"] == JOB["spec"]["completions"]
    assert f"--nproc {pod['containers'][0]['resources']['limits']['nvidia.com/gpu']} " in script
    for one in pods():
        assert claim["metadata"]["name"] in [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in one["volumes"]
            if "persistentVolumeClaim" in volume
        ]


def flags(command):
    return set(re.findall(r"--[a-z-]+", command))


def test_every_flag_is_one_of_train():
    from typer.main import get_command

    from pipeline.cli import app

    known = {option for parameter in get_command(app).commands["train"].params for option in parameter.opts}
    used = flags(JOB["spec"]["template"]["spec"]["containers"][0]["args"][0])
    used |= flags(SKY["run"]) | flags(" ".join(MANIFESTS[-1]["spec"]["trainer"]["command"]))
    assert used == {"--base", "--nproc", "--nnodes", "--rendezvous"}
    assert used <= known


# SkyPilot's own schema comes with a package that does not install beside ours; docs/scaling.md says how it was applied.
def test_the_sky_task_has_known_keys_only():
    assert set(SKY) <= {"name", "resources", "num_nodes", "workdir", "envs", "setup", "run", "file_mounts"}
    assert set(SKY["resources"]) <= {"accelerators", "disk_size", "cpus", "memory", "infra", "use_spot"}
    assert isinstance(SKY["num_nodes"], int) and all(isinstance(value, str) for value in SKY["envs"].values())
    assert (DEPLOY.parent / re.search(r"--requirement (\S+)", SKY["setup"])[1]).is_file()


@pytest.mark.parametrize(
    ("ips", "command"),
    [
        ("10.0.0.1", "-m pipeline train --base b --nproc 2"),
        ("10.0.0.1\n10.0.0.2", "-m pipeline train --base b --nproc 2 --nnodes 2 --rendezvous 10.0.0.1:29400"),
    ],
)
def test_the_sky_task_runs_one_command_on_one_machine_or_several(tmp_path, ips, command):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    sky = {"SKYPILOT_NODE_IPS": ips, "SKYPILOT_NUM_NODES": str(len(ips.split())), "SKYPILOT_NUM_GPUS_PER_NODE": "2"}
    done = subprocess.run(
        ["bash", "-c", SKY["run"]], cwd=tmp_path, env=os.environ | sky | {"BASE": "b"}, capture_output=True, text=True
    )
    assert done.stdout.split() == shlex.split(command), done.stderr


@pytest.mark.parametrize(
    "script", [SKY["setup"], SKY["run"], JOB["spec"]["template"]["spec"]["containers"][0]["args"][0]]
)
def test_scripts_are_valid_shell(script):
    assert subprocess.run(["sh", "-n", "-c", script]).returncode == 0
