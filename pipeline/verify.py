"""`verify RUN`: build a run again from its manifest, into a fresh folder, and compare every output's bytes.

What is compared is what the same inputs promise: data, training, export and parity. Playing the held-out turns and the
report hold times and speeds; their files are checked against the manifest, and `train:validate` plays again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError as Malformed

from pipeline import files, run
from pipeline.artifacts import BaseModel, LlamaCpp, Run
from pipeline.config import Config
from pipeline.errors import UsageError, ValidationError
from pipeline.journey import Journey, describe, exclusive
from pipeline.progress import Reporter
from pipeline.provenance import papers

REBUILT = ("data", "training", "export", "parity")
_INPUTS = {
    ("inputs", "data"): "the data folder or its settings",
    ("inputs", "base", "digest"): "the base",
    ("code",): "the code of dm-forge",
    ("llama_cpp", "commit"): "llama.cpp's commit",
    ("llama_cpp", "build_flags"): "llama.cpp's build flags",
}
TIMES = frozenset({"seconds", "memory"})  # keys of journals that tell how long something took, and in how much room


@dataclass(frozen=True)
class Comparison:
    """One output: `state` is same, same but for times, differs, changed (here, since the run) or not rebuilt."""

    output: str
    state: str
    recorded: str
    found: str

    @property
    def ok(self) -> bool:
        return self.state not in ("differs", "changed")

    def __str__(self) -> str:
        told = self.recorded[:16] if self.ok else f"{self.recorded[:16]}, now {self.found[:16]}"
        return f"{'✓' if self.ok else '✗'} {self.output}: {self.state} ({told})"


def verify(name: str, config: Config, reporter: Reporter) -> list[Comparison]:
    """Rebuild the run called `name` (its id, the beginning of it, or its folder) and compare.

    Raises ValidationError when the inputs are not those of the manifest (then nothing is built), or when an output
    differs. The rebuilt run is kept only when it differs.
    """
    recorded = find(name, config.output_dir)
    manifest = recorded.manifest()
    journey = again(recorded, manifest, config, reporter)
    place = journey.config.output_dir
    with exclusive(place.parent):  # its lock lies outside of what is removed here, or two could each hold one
        files.remove(place)
        _require(faults(manifest, describe(journey), journey.run.run_id), recorded)  # before anything dear
        base, llama = inputs(journey, manifest)
        found = describe(journey, base, llama)
        _require(faults(manifest, found, journey.run.run_id), recorded)
        rebuild(journey, base, llama)
        compared = list(compare(recorded, journey.run))
        if all(line.ok for line in compared):
            files.remove(place)
    reporter.result([str(line) for line in compared], run=recorded.run_id, outputs=[asdict(line) for line in compared])
    different = [line.output for line in compared if not line.ok]
    if different:
        raise ValidationError(
            f"{len(different)} of {len(compared)} outputs are not what the manifest says: {', '.join(different)}",
            where=f"{recorded.folder}, rebuilt in {journey.run.folder}",
            fix=explain(compared, manifest, found),
        )
    return compared


def shelf(config: Config, reporter: Reporter) -> None:
    """Check the promoted files against their papers. Raises ValidationError listing everything that disagrees."""
    found = papers.check(config.models_dir)
    reporter.result([f"✓ {name}: sha256 {digest}" for name, digest in sorted(found.items())], files=found)


def find(name: str, runs: Path) -> Run:
    """The run of that id, beginning of an id, or folder. Raises UsageError where it is missing, ambiguous or unfinished."""
    known = sorted(path.parent for path in runs.glob("*/manifest.json"))
    folders = [Path(name)] if (Path(name) / "manifest.json").is_file() else []
    folders = folders or [path for path in known if path.name == name]
    folders = folders or [path for path in known if path.name.startswith(name)]
    if len(folders) != 1:
        what = f"there is no run {name!r}" if not folders else f"{name!r} begins the name of {len(folders)} runs"
        listed = ", ".join(path.name for path in folders or known) or "none"
        raise UsageError(what, where=str(runs), fix=f"give the name of one: {listed}")
    found = Run(folders[0])
    if found.manifest().get("exit") != 0:
        raise UsageError(
            f"the run {found.run_id} did not end with a promoted model: it has nothing to verify",
            where=str(found.manifest_path),
            fix="let `pnpm run train` end; then verify",
        )
    return found


def again(recorded: Run, manifest: Mapping[str, Any], config: Config, reporter: Reporter) -> Journey:
    """The recorded run's journey, with places of its own: no earlier run's stages are there to be taken over."""
    _require(_beyond(manifest), recorded)
    place = recorded.folder.parent.parent / "verify" / recorded.run_id
    here = {"output_dir": place, "cache_dir": config.cache_dir, "models_dir": place / "models"}
    try:
        settings = Config.model_validate(manifest["config"] | here)
        return Journey(settings, reporter, int(manifest["host"]["threads"]))
    except (Malformed, KeyError, TypeError) as error:
        raise ValidationError(
            f"the manifest's settings are not ones that this dm-forge knows: {error}",
            where=str(recorded.manifest_path),
            fix="verify with the dm-forge that made the run",
        ) from error


def _beyond(manifest: Mapping[str, Any]) -> list[str]:
    """What a run may rest on that cannot be had again from its manifest alone."""
    parent, processes = manifest.get("lineage"), manifest.get("processes", 1)
    return [
        *([f"it went on from the adapter of run {parent['run_id']}"] if parent else []),
        *([f"{processes} processes trained it"] if processes > 1 else []),
    ]


def inputs(journey: Journey, manifest: Mapping[str, Any]) -> tuple[BaseModel, LlamaCpp]:
    """The base (the one that `auto` was then) and llama.cpp."""
    from pipeline.bases import fetch

    name = journey.config.base
    if name == "auto":
        name = manifest["inputs"]["base"]["name"]
    with journey.reporter.stage("base", name) as stage:
        base = fetch.ensure(name, journey.config.cache_dir, stage, journey.config.accept_licences)
    return base, run.build_llama(journey)


def faults(manifest: Mapping[str, Any], found: Mapping[str, Any], run_id: str) -> list[str]:
    """Every input that is not the recorded one; what `found` does not hold yet is passed over. Machines may differ."""
    listed = [
        f"{label}: {_short(_at(manifest, path))} then, {_short(now)} now"
        for path, label in _INPUTS.items()
        if (now := _at(found, path)) is not None and now != _at(manifest, path)
    ]
    then = manifest.get("versions", {})
    for package, version in sorted(found["versions"].items()):
        if then.get(package) != version and package != "python":
            listed.append(f"{package}: {then.get(package)} then, {version} now")
    if not listed and run_id != manifest["run_id"]:
        listed.append(f"the settings: they would name the run {run_id}, the manifest says {manifest['run_id']}")
    return listed


def rebuild(journey: Journey, base: BaseModel, llama: LlamaCpp) -> None:
    """The stages whose bytes are promised."""
    dataset = run.data(journey)
    run.require_disk(journey, base)
    run.train_adapter(journey, dataset, base, llama)
    run.export(journey, dataset, base, llama)
    run.prove(journey, dataset, base, llama)


def compare(recorded: Run, rebuilt: Run) -> Iterator[Comparison]:
    """Every output of the manifest, in the stages' order: against its file here, and against the rebuilt one."""
    remade = rebuilt.manifest()["stages"]
    stages = recorded.manifest()["stages"]
    for stage in sorted(stages, key=lambda name: (name not in REBUILT, REBUILT.index(name) if name in REBUILT else 0)):
        for output, digest in sorted(stages[stage]["outputs"].items()):
            here = _digest(recorded.folder / output)
            if here != digest:
                yield Comparison(output, "changed", digest, here)
            elif stage not in REBUILT:
                yield Comparison(output, "not rebuilt", digest, here)
            else:
                now = remade.get(stage, {"outputs": {}})["outputs"].get(output, "missing")
                yield Comparison(output, _state(recorded, rebuilt, output, digest, now), digest, now)


def explain(compared: list[Comparison], manifest: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Why outputs differ, as far as the manifest tells."""
    changed = [line.output for line in compared if line.state == "changed"]
    if changed:
        return f"the files in the run's folder were changed after the run: {', '.join(changed)}; train again"
    first = next(line.output for line in compared if not line.ok)
    before, after = (facts["host"] | {"Python": facts["versions"]["python"]} for facts in (manifest, found))
    other = [
        f"{key}: {_short(before.get(key))} then, {_short(now)} now"
        for key, now in after.items()
        if before.get(key) != now
    ]
    if other:
        return f"{first} differs first. Another machine may add numbers in another order: {'; '.join(other)}"
    return (
        f"{first} differs first, and machine, threads, versions, code and inputs are the recorded ones: look for a "
        "faulty memory, or tell the makers of dm-forge; both runs are kept"
    )


def _state(recorded: Run, rebuilt: Run, output: str, then: str, now: str) -> str:
    if then == now:
        return "same"
    timeless = [_without_times(one.folder / output) for one in (recorded, rebuilt)]
    return "same but for times" if timeless[0] is not None and timeless[0] == timeless[1] else "differs"


def _without_times(path: Path) -> list[Any] | None:
    """A journal's lines without what took how long; None for any other file."""
    if path.suffix != ".jsonl" or not path.is_file():
        return None
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def _digest(path: Path) -> str:
    return files.sha256_file(path) if path.is_file() else "missing"


def _at(mapping: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = mapping
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _short(value: Any) -> str:
    text = " ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) <= 160 else f"{text[:60]}… (sha256 {files.sha256_bytes(text.encode())[:12]})"


def _require(listed: list[str], recorded: Run) -> None:
    if listed:
        raise ValidationError(
            f"the run {recorded.run_id} cannot be built again here, its inputs are not the same:\n  "
            + "\n  ".join(listed),
            where=str(recorded.manifest_path),
            fix="check out the recorded data and code, and install the recorded versions; then verify",
        )
