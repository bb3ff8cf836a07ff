"""The papers beside a promoted model: written at promotion, checked by `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import BaseModel, Run
from pipeline.errors import ValidationError
from pipeline.integration import store
from pipeline.provenance import bom, packages, statement


def write(
    run: Run, base: BaseModel, facts: dict[str, Any], metadata: dict[str, Any], mmproj: Path | None
) -> dict[str, bytes]:
    """The contents of store.PAPERS: the bill of materials, and the statement with every promoted file as subject."""
    stages = run.manifest()["stages"].values()
    made = {name: digest for stage in stages for name, digest in stage["outputs"].items()}
    dataset = made["data/dataset.jsonl"]
    bill = files.json_bytes(bom.bill(metadata, base, facts, dataset, packages.installed()))
    name = metadata["model_name"]
    subjects = {
        f"{name}.gguf": metadata["sha256"],
        f"{name}{store.PAPERS['bill']}": files.sha256_bytes(bill),
        store.METADATA: files.sha256_bytes(files.json_bytes(metadata)),
    }
    if mmproj:
        subjects[f"{name}-mmproj.gguf"] = files.sha256_file(mmproj)
    weights = {name: digest for name, digest in made.items() if name.endswith((".safetensors", ".gguf"))}
    said = statement.statement(run.run_id, base, facts, dataset, subjects, weights)
    return {"bill": bill, "statement": files.json_bytes(said)}


def check(models_dir: Path) -> dict[str, str]:
    """The promoted files' sha256 by name, every one as its papers say.

    Raises ValidationError listing every file that is missing or has other bytes, and every paper that speaks of
    another model.
    """
    metadata = store.current(models_dir)
    if metadata is None:
        raise ValidationError("no model has been promoted yet", where=str(models_dir), fix="run `pnpm run train` first")
    said = _read(store.papers(models_dir, metadata)["statement"])
    digests = {item["name"]: item["digest"]["sha256"] for item in said["subject"]}
    found = {
        path.name: files.sha256_file(path) if path.is_file() else "missing"
        for path in (models_dir / name for name in digests | dict.fromkeys(_expected(models_dir, metadata)))
    }
    faults = [
        f"{name}: its sha256 is {digest}, the provenance statement says {digests.get(name, 'nothing of it')}"
        for name, digest in sorted(found.items())
        if digests.get(name) != digest
    ]
    faults += _disagreements(metadata, said, digests, models_dir)
    if faults:
        raise ValidationError(
            "what is promoted is not what its papers say:\n  " + "\n  ".join(faults),
            where=str(models_dir),
            fix="do not ship it; run `pnpm run train` again: it puts the proven files back",
        )
    return found


def _expected(models_dir: Path, metadata: dict[str, Any]) -> list[str]:
    """Every file that must be a subject, whatever the statement says."""
    name = metadata["model_name"]
    projector = f"{name}-mmproj.gguf"
    expected = [f"{name}.gguf", f"{name}{store.PAPERS['bill']}", store.METADATA]
    return [*expected, projector] if (models_dir / projector).is_file() else expected


def _disagreements(
    metadata: dict[str, Any], said: dict[str, Any], digests: dict[str, str], models_dir: Path
) -> list[str]:
    """Where the three papers contradict one another."""
    faults = []
    if said["_type"] != statement.TYPE or said["predicateType"] != statement.PREDICATE:
        faults.append(f"the statement is a {said['predicateType']} of {said['_type']}, not SLSA provenance v1")
    run_id = said["predicate"]["runDetails"]["metadata"]["invocationId"]
    if run_id != metadata["run_id"]:
        faults.append(f"the statement is of run {run_id}, the metadata of run {metadata['run_id']}")
    model = f"{metadata['model_name']}.gguf"
    if digests.get(model) != metadata["sha256"]:
        faults.append(f"{model}: the metadata says sha256 {metadata['sha256']}, the statement {digests.get(model)}")
    bill = store.papers(models_dir, metadata)["bill"]
    if bill.is_file():
        listed = [item["content"] for item in _read(bill)["metadata"]["component"]["hashes"]]
        if listed != [metadata["sha256"]]:
            faults.append(f"{bill.name}: it is the bill of {', '.join(listed)}, not of {metadata['sha256']}")
    return faults


def _read(path: Path) -> Any:
    try:
        return files.read_json(path)
    except (OSError, ValueError) as error:
        raise ValidationError(
            f"the promoted model's paper cannot be read: {error}",
            where=str(path),
            fix="run `pnpm run train` again: it writes the papers anew",
        ) from error
