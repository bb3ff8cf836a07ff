"""The provenance statement: in-toto Statement v1 with a SLSA provenance v1 predicate.

It is not signed: it says what was made from what, and its digests are checked, but who made it has to be known from
elsewhere (SLSA build level 1). Equal inputs give equal bytes: it holds no time and no path of a machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.artifacts import BaseModel
from pipeline.environment.llama_source import PIN

TYPE = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:dm-forge:train:v1"
_PLACES = ("output_dir", "cache_dir", "models_dir")


def statement(
    run_id: str,
    base: BaseModel,
    facts: Mapping[str, Any],
    dataset_sha256: str,
    subjects: Mapping[str, str],
    byproducts: Mapping[str, str],
) -> dict[str, Any]:
    """`subjects` are the promoted files' sha256 by name, `byproducts` those of the weights on the way to them: where two
    runs differ, they tell from which stage on. `facts` are the manifest's (see pipeline.journey.describe)."""
    return {
        "_type": TYPE,
        "subject": _digests(subjects),
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": settings(facts["config"], base),
                "internalParameters": {
                    "versions": facts["versions"],
                    "host": facts["host"],
                    "llama.cpp": facts["llama_cpp"]["build_flags"],
                },
                "resolvedDependencies": _dependencies(base, facts, dataset_sha256),
            },
            "runDetails": {
                "builder": {"id": "urn:dm-forge", "version": {"dm-forge": __version__}},
                "metadata": {"invocationId": run_id},
                "byproducts": _digests(byproducts),
            },
        },
    }


def _digests(files: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(files.items())]


def settings(config: Mapping[str, Any], base: BaseModel) -> dict[str, Any]:
    """The run's settings without the places of this machine: a folder given by its full path keeps its name alone."""
    data = dict(config["data"])
    if Path(data["folder"]).is_absolute():
        data["folder"] = Path(data["folder"]).name
    kept = {key: value for key, value in config.items() if key not in _PLACES}
    return kept | {"base": base.name if base.origin == "local folder" else config["base"], "data": data}


def _dependencies(base: BaseModel, facts: Mapping[str, Any], dataset_sha256: str) -> list[dict[str, Any]]:
    """Digests of several files (base, code, data folder) are of the canonical JSON of path and sha256 of each."""
    commit = facts["llama_cpp"]["commit"]
    return [
        {"name": "base", "digest": {"sha256": base.digest}, "annotations": {"name": base.name, "origin": base.origin}},
        {"name": "dataset.jsonl", "digest": {"sha256": dataset_sha256}},
        {"name": "training_data", "digest": {"sha256": facts["inputs"]["data"]}},
        {"name": "dm-forge", "digest": {"sha256": facts["code"]}, "annotations": {"version": __version__}},
        {
            "name": "llama.cpp",
            "uri": f"git+https://github.com/ggml-org/llama.cpp@{commit}",
            "digest": {"gitCommit": commit},
            "annotations": {"tree": PIN.tree},
        },
    ]
