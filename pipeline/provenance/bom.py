"""The bill of materials: CycloneDX 1.6 in JSON. Equal inputs give equal bytes: no time, no random serial number."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import __version__
from pipeline.artifacts import BaseModel
from pipeline.bases import catalog
from pipeline.environment.llama_source import PIN
from pipeline.provenance.packages import Licence, Package

SPEC = "1.6"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:dm-forge:bom")
_MODEL, _BASE, _DATA, _CODE, _LLAMA = "model", "base", "data", "dm-forge", "llama.cpp"


def bill(
    metadata: Mapping[str, Any],
    base: BaseModel,
    facts: Mapping[str, Any],
    dataset_sha256: str,
    packages: Sequence[Package],
) -> dict[str, Any]:
    """`metadata` is the promoted model's, `facts` are the manifest's (see pipeline.journey.describe)."""
    wheels = [_package(package) for package in packages]
    carriers = _carriers(base)
    components = [_base(base), *carriers, _data(facts, dataset_sha256), _code(facts), _llama(facts), *wheels]
    tools = [_CODE, _LLAMA]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, metadata['sha256'])}",
        "version": 1,
        "metadata": {"component": _model(metadata, base)},
        "components": components,
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [_BASE, _DATA, *tools]},
            {"ref": _BASE, "dependsOn": [carrier["bom-ref"] for carrier in carriers]},
            {"ref": _CODE, "dependsOn": [wheel["bom-ref"] for wheel in wheels]},
        ],
    }


def _model(metadata: Mapping[str, Any], base: BaseModel) -> dict[str, Any]:
    figures = (
        ("tool-call accuracy", "tool_call_accuracy"),
        ("tool-call accuracy, base", "baseline_tool_call_accuracy"),
    )
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": metadata["model_name"],
        "version": metadata["run_id"],
        "hashes": [_sha256(metadata["sha256"])],
        "licenses": _licences(_licence_of_base(base)),
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "text-generation",
                "architectureFamily": base.architecture,
                "datasets": [{"ref": _DATA}],
            },
            "quantitativeAnalysis": {
                "performanceMetrics": [{"type": label, "value": str(metadata[key])} for label, key in figures]
            },
        },
        "properties": [_property("quantisation", metadata["quantization_level"])],
    }


def _base(base: BaseModel) -> dict[str, Any]:
    """The digest covers every file of the checkpoint; `hashes` holds that of the one file it was taken from."""
    entry = catalog.entries().get(base.name)
    embedded = entry.embedded if entry and "==" in base.origin else None
    repository, _, commit = base.origin.partition("@")
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _BASE,
        "name": base.name,
        "licenses": _licences(_licence_of_base(base)),
        "properties": [_property("checkpoint-digest", base.digest), _property("origin", base.origin)],
    }
    if embedded:
        component["hashes"] = [_sha256(embedded.gguf_sha256)]
    if commit:
        component |= {"version": commit, "purl": f"pkg:huggingface/{repository}@{commit}"}
    return component


def _carriers(base: BaseModel) -> list[dict[str, Any]]:
    """The wheels that an embedded base comes in: read as data, never installed."""
    entry = catalog.entries().get(base.name)
    if entry is None or entry.embedded is None or "==" not in base.origin:
        return []
    return [
        {
            "type": "file",
            "bom-ref": f"pkg:pypi/{wheel.package}@{wheel.version}",
            "name": wheel.package,
            "version": wheel.version,
            "purl": f"pkg:pypi/{wheel.package}@{wheel.version}",
            "hashes": [_sha256(wheel.sha256)],
        }
        for wheel in entry.embedded.wheels
    ]


def _data(facts: Mapping[str, Any], dataset_sha256: str) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": _DATA,
        "name": "training_data",
        "hashes": [_sha256(dataset_sha256)],
        "data": [{"type": "dataset", "name": "dataset.jsonl", "description": "conversations, each with its split"}],
        "properties": [_property("inputs-digest", facts["inputs"]["data"])],
    }


def _code(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "application",
        "bom-ref": _CODE,
        "name": "dm-forge",
        "version": __version__,
        "licenses": _licences(Licence("Apache-2.0", True)),
        "properties": [_property("code-digest", facts["code"])],
    }


def _llama(facts: Mapping[str, Any]) -> dict[str, Any]:
    commit = facts["llama_cpp"]["commit"]
    return {
        "type": "application",
        "bom-ref": _LLAMA,
        "name": "llama.cpp",
        "version": commit,
        "purl": f"pkg:github/ggml-org/llama.cpp@{commit}",
        "licenses": _licences(Licence("MIT", True)),
        "properties": [
            _property("tree-digest", PIN.tree),
            *(_property("build-flag", flag) for flag in facts["llama_cpp"]["build_flags"]),
        ],
    }


def _package(package: Package) -> dict[str, Any]:
    purl = f"pkg:pypi/{package.name}@{package.version.replace('+', '%2B')}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
        "licenses": _licences(package.licence),
    }
    if package.digests:  # one for each file that the lock allows; which of them pip took it does not write down
        hashes = [_sha256(digest) for digest in package.digests]
        component["externalReferences"] = [{"type": "distribution", "url": purl, "hashes": hashes}]
    return component


def _licence_of_base(base: BaseModel) -> Licence:
    return Licence(base.licence, base.licence == "Apache-2.0")


def _licences(licence: Licence) -> list[dict[str, Any]]:
    return [{"expression": licence.text} if licence.spdx else {"license": {"name": licence.text}}]


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": f"dm-forge:{name}", "value": value}
