"""The devcontainers' files: keys of the specification, values of its types, and the stage that they build.

The specification's own schema comes in no package; the files were validated by devcontainers/spec c95ffee once, with a
planted fault refused.
"""

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".devcontainer").glob("*/devcontainer.json"))
TEXT, TEXTS = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
NUMBER_OR_TEXT = {"anyOf": [{"type": "integer"}, TEXT]}
COMMAND = {"anyOf": [TEXT, TEXTS, {"type": "object"}]}
# Own words for the part of https://containers.dev/implementors/json_reference/ that these files use or may come to use.
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "build", "remoteUser", "workspaceFolder"],
    "properties": {
        "name": TEXT,
        "build": {
            "type": "object",
            "additionalProperties": False,
            "required": ["dockerfile"],
            "properties": {
                "dockerfile": TEXT,
                "context": TEXT,
                "target": TEXT,
                "args": {"type": "object", "additionalProperties": TEXT},
                "cacheFrom": {"anyOf": [TEXT, TEXTS]},
                "options": TEXTS,
            },
        },
        "workspaceFolder": TEXT,
        "workspaceMount": TEXT,
        "remoteUser": {"not": {"const": "root"}, **TEXT},
        "containerUser": TEXT,
        "updateRemoteUserUID": {"type": "boolean"},
        "initializeCommand": TEXT,
        "init": {"type": "boolean"},
        "mounts": {"type": "array", "items": {"anyOf": [TEXT, {"type": "object"}]}},
        "runArgs": TEXTS,
        "capAdd": TEXTS,
        "securityOpt": TEXTS,
        "containerEnv": {"type": "object", "additionalProperties": TEXT},
        "remoteEnv": {"type": "object"},
        "forwardPorts": {"type": "array", "items": NUMBER_OR_TEXT},
        "customizations": {"type": "object", "additionalProperties": {"type": "object"}},
        "hostRequirements": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "cpus": {"type": "integer"},
                "memory": TEXT,
                "storage": TEXT,
                "gpu": {"anyOf": [{"type": "boolean"}, {"const": "optional"}, {"type": "object"}]},
            },
        },
        "onCreateCommand": COMMAND,
        "updateContentCommand": COMMAND,
        "postCreateCommand": COMMAND,
        "postStartCommand": COMMAND,
        "postAttachCommand": COMMAND,
    },
}


def read(path):
    return json.loads(re.sub(r"^\s*//.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_a_devcontainer_has_keys_and_values_of_the_specification(path):
    jsonschema.validate(read(path), SCHEMA)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
@pytest.mark.parametrize(
    "change",
    [{"postCreateCommandd": "x"}, {"forwardPorts": "8000"}, {"remoteUser": "root"}, {"build": {"target": "dev"}}],
)
def test_a_planted_fault_is_refused(path, change):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(copy.deepcopy(read(path)) | change, SCHEMA)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_a_devcontainer_builds_a_stage_that_there_is(path):
    build = read(path)["build"]
    dockerfile = (path.parent / build["dockerfile"]).resolve()
    assert (path.parent / build["context"]).resolve() == ROOT
    assert re.search(rf"^FROM \S+ AS {build['target']}$", dockerfile.read_text(), re.MULTILINE)
    assert build["args"]["VARIANT"] == path.parent.name
