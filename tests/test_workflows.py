"""The continuous build's files: pinned by commit, least permissions, time limits; checked by zizmor, without network."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
USES = re.compile(r"^\s*(?:- )?uses: (\S+)(.*)$", re.MULTILINE)


def faults(text):
    """What is wrong with a workflow, in the words of this project's rules."""
    found = []
    for action, comment in USES.findall(text):
        if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action) or not re.match(r" # v\d+\.\d+\.\d+$", comment):
            found.append(f"{action} is not pinned by commit with its version beside it")
    content = yaml.safe_load(text)
    triggers = content[True]  # YAML 1.1 reads `on` as true
    if content.get("permissions") != {}:
        found.append("the workflow gives permissions to all of its jobs")
    if "pull_request_target" in triggers:
        found.append("pull_request_target runs strangers' code with our rights")
    for name, job in content["jobs"].items():
        found += [f"{name}: {fault}" for fault in job_faults(job, triggers)]
    return found


def job_faults(job, triggers):
    if job.get("permissions") != {"contents": "read"}:
        yield "more permissions than reading"
    if not isinstance(job.get("timeout-minutes"), int):
        yield "no time limit"
    if "self-hosted" in job["runs-on"] and "pull_request" in triggers:
        yield "strangers' code would run on a machine of ours"
    for step in job["steps"]:
        if "actions/checkout" in step.get("uses", "") and step.get("with", {}).get("persist-credentials") is not False:
            yield "the checkout leaves its token on the disk"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_keeps_the_rules(path):
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (r"checkout@[0-9a-f]{40} # v[\d.]+", "checkout@v7", "not pinned"),
        (r"(checkout@[0-9a-f]{40}) # v[\d.]+", r"\1", "version beside it"),
        (r"permissions: \{\}", "permissions: write-all", "gives permissions"),
        (r"contents: read", "contents: write", "more permissions"),
        (r"    timeout-minutes: \d+\n", "", "no time limit"),
        (r"persist-credentials: false", "persist-credentials: true", "leaves its token"),
        (r"  pull_request:", "  pull_request_target:", "strangers"),
        (r"runs-on: ubuntu-24.04", "runs-on: [self-hosted]", "strangers"),
    ],
)
def test_a_planted_fault_is_found(old, new, words):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    spoilt = re.sub(old, new, text, count=1)
    assert spoilt != text
    assert any(words in fault for fault in faults(spoilt))


def zizmor(folder):
    command = [Path(sys.executable).with_name("zizmor"), "--offline", "--quiet", "--persona", "auditor", folder]
    return subprocess.run(command, capture_output=True, text=True)


def test_zizmor_finds_nothing():
    done = zizmor(ROOT / ".github" / "workflows")
    assert done.returncode == 0, done.stdout


def test_zizmor_finds_a_planted_injection(tmp_path):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    (folder / "ci.yml").write_text(
        text.replace("- run: npx", "- run: echo ${{ github.event.pull_request.title }}\n      - run: npx", 1)
    )
    done = zizmor(folder)
    assert done.returncode != 0 and "template-injection" in done.stdout


def test_every_pnpm_command_of_a_workflow_exists_in_the_pinned_version():
    package = json.loads((ROOT / "package.json").read_text())
    commands = re.findall(r"(pnpm\S*) (?:run )?(\S+)", "".join(path.read_text() for path in FILES))
    assert commands
    assert {version for version, _ in commands} == {package["packageManager"].split("+")[0]}
    assert {verb for _, verb in commands} <= set(package["scripts"])
