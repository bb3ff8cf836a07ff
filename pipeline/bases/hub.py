"""The model hub: what a repository holds at a commit, and its files, resumed where they were cut off and verified.

`huggingface_hub` speaks to the hub (addresses, tokens, errors, session). Its own download does not take up a file that
another process left half-way, so the bytes are read here: into `<name>.part`, by range from where it ends, and the
digest that the hub publishes (LFS sha256, or git's blob id for small files) decides whether the file is kept.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.bases import catalog
from pipeline.errors import BaseModelError, MachineError
from pipeline.progress import Stage

_ATTEMPTS = 5  # in a row without a new byte
_TIMEOUT = 20.0  # seconds
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class RemoteFile:
    """`sha256` is the hub's for large files; small ones have `blob_id`, git's digest."""

    name: str
    size: int
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]
    gated: bool
    licence: str

    def file(self, name: str) -> RemoteFile | None:
        return next((file for file in self.files if file.name == name), None)


def endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or str(constants.ENDPOINT)).rstrip("/")


def look(repo: str, revision: str | None, timeout: float = _TIMEOUT) -> Snapshot:
    """The repository's files at a commit, or at the head of its main branch. Raises BaseModelError, MachineError."""
    from huggingface_hub import HfApi

    with explained(repo, revision):
        api = HfApi(endpoint=endpoint(), token=_token())
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
    found = tuple(_remote(sibling) for sibling in info.siblings or () if _SAFE_NAME.fullmatch(sibling.rfilename))
    card: Any = info.card_data.to_dict() if info.card_data else {}
    return Snapshot(repo, str(info.sha), found, bool(info.gated), str(card.get("license") or "not stated"))


def probe(repo: str, revision: str | None, timeout: float = 4.0) -> catalog.Reach:
    """Does the hub answer, and would it hand out this repository's files? Never raises; waits `timeout` seconds."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session

    try:
        with explained(repo, revision):
            url = hf_hub_url(repo, "config.json", revision=revision, endpoint=endpoint())
            headers = build_hf_headers(token=_token())
            answer = get_session().head(url, headers=headers, timeout=timeout, follow_redirects=True)
            _require_ok(answer)
    except BaseModelError as error:
        return catalog.Reach(answers=True, accepted=False, reason=error.what)
    except MachineError as error:
        return catalog.Reach(answers=False, accepted=False, reason=error.what)
    return catalog.Reach(answers=True, accepted=True, reason=f"the hub hands out {repo} (its licence is accepted)")


def download(snapshot: Snapshot, names: list[str], folder: Path, stage: Stage) -> None:
    """Bring files into `folder`, each under its own name once its digest agrees. What is there already is kept."""
    chosen = [file for file in snapshot.files if file.name in names]
    missing = [file for file in chosen if not (folder / file.name).is_file()]
    there = sum((folder / f"{file.name}.part").stat().st_size for file in missing if _part(folder, file).is_file())
    total = sum(file.size for file in chosen)
    done = total - sum(file.size for file in missing)
    if there:
        stage.note(f"going on with a download that was cut off, {files.human_size(done + there)} of it is here")
    files.require_free_space(folder, sum(file.size for file in missing) - there, f"downloading {snapshot.repo}")
    for file in missing:
        _fetch(snapshot, file, folder, _Bar(stage, done, total))
        done += file.size


@dataclass(frozen=True)
class _Bar:
    stage: Stage
    before: int
    total: int

    def show(self, size: int) -> None:
        self.stage.update((self.before + size) / 1e6, self.total / 1e6, "MB")


def _fetch(snapshot: Snapshot, file: RemoteFile, folder: Path, bar: _Bar) -> None:
    part = _part(folder, file)
    resumed = part.is_file() and part.stat().st_size > 0
    for fresh in (False, True):
        if fresh:
            bar.stage.note(f"{file.name} was cut off earlier and does not fit together: fetching it from the start")
        _stream(snapshot, file, part, bar)
        if _digest_agrees(part, file):
            part.replace(folder / file.name)
            return
        part.unlink()
        if not resumed:
            break
    raise BaseModelError(
        f"{file.name} of {snapshot.repo} has another digest than the hub publishes ({file.sha256 or file.blob_id})",
        where=f"{endpoint()}/{snapshot.repo}/blob/{snapshot.commit}/{file.name}",
        fix="run again, it is fetched anew; if it happens again, something between you and the hub changes files",
    )


def _stream(snapshot: Snapshot, file: RemoteFile, part: Path, bar: _Bar) -> None:
    """Append to `part` until it has the file's size, taking up the connection again where it broke."""
    left, furthest = _ATTEMPTS, 0
    while (size := part.stat().st_size if part.is_file() else 0) != file.size or not part.is_file():
        if size > file.size:  # left by an earlier run: of another file
            part.unlink()
            continue
        furthest = max(furthest, size)
        try:
            with explained(snapshot.repo, snapshot.commit):
                _append(snapshot, file, part, size, bar)
        except MachineError:
            left = _ATTEMPTS if part.is_file() and part.stat().st_size > furthest else left - 1
            if left <= 0:
                raise
            time.sleep(min(2.0, 0.1 * 2 ** (_ATTEMPTS - left)))


def _append(snapshot: Snapshot, file: RemoteFile, part: Path, size: int, bar: _Bar) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session

    url = hf_hub_url(snapshot.repo, file.name, revision=snapshot.commit, endpoint=endpoint())
    headers = build_hf_headers(token=_token()) | {"Accept-Encoding": "identity"}
    if size:
        headers["Range"] = f"bytes={size}-"
    with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True) as answer:
        _require_ok(answer)
        with part.open("ab" if answer.status_code == 206 else "wb") as out:
            for chunk in answer.iter_raw():  # as they arrive: a larger chunk would be lost when the line breaks
                out.write(chunk)
                if out.tell() > file.size:
                    break
                bar.show(out.tell())
    if (got := part.stat().st_size) > file.size:
        part.unlink()
        raise MachineError(
            f"what came as {file.name} has {got:,} bytes or more, and the hub announces {file.size:,}",
            where=url,
            fix="something between you and the hub answers in its place (a proxy's page?): open the address in a browser, "
            "set HTTPS_PROXY or HF_ENDPOINT to what your network wants, and run again",
        )
    if part.stat().st_size < file.size:
        raise MachineError(
            f"the hub ended {file.name} after {part.stat().st_size:,} of {file.size:,} bytes",
            where=url,
            fix="run again: the download goes on where it stopped",
        )


def _require_ok(answer: Any) -> None:
    from huggingface_hub.utils import hf_raise_for_status

    if answer.is_error and not answer.is_stream_consumed:
        answer.read()
    hf_raise_for_status(answer)


def _digest_agrees(path: Path, file: RemoteFile) -> bool:
    if file.sha256:
        return files.sha256_file(path) == file.sha256
    if not file.blob_id:
        return path.stat().st_size == file.size
    content = path.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)  # how git names a small file
    return git.hexdigest() == file.blob_id


def _part(folder: Path, file: RemoteFile) -> Path:
    return folder / f"{file.name}.part"


def _remote(sibling: Any) -> RemoteFile:
    lfs = sibling.lfs
    size = (lfs.size if lfs else None) or sibling.size or 0
    return RemoteFile(sibling.rfilename, int(size), lfs.sha256 if lfs else None, sibling.blob_id)


def _token() -> str | bool:
    from huggingface_hub import get_token

    return get_token() or False


@contextmanager
def explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's library raises into words: gated, unknown, no such commit, no network, hub in trouble."""
    from huggingface_hub import errors

    page = f"{endpoint()}/{repo}"
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise _no_hub(repo, "HF_HUB_OFFLINE forbids to ask the hub", "unset HF_HUB_OFFLINE") from error
    except errors.GatedRepoError as error:
        raise _gated(repo, error.response.status_code) from error
    except errors.RevisionNotFoundError as error:
        raise BaseModelError(
            f"the hub's {repo} has no commit {revision}",
            where=page,
            fix=f"give another with --base {repo}@<40-digit commit>, or tell the maintainers that the catalogue is stale",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BaseModelError(
            f"the hub has no repository {repo!r}, or it is private (HTTP {error.response.status_code})",
            where=page,
            fix="check the spelling (owner/name); for a private one set HF_TOKEN; or " + catalog.alternatives(),
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise _gated(repo, status) from error
        raise _no_hub(repo, f"the hub answers HTTP {status}", "try again later") from error
    except (errors.HTTPError, OSError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise _no_hub(repo, f"the hub does not answer: {words[0]}", "check the network and HF_ENDPOINT") from error


def _gated(repo: str, status: int) -> BaseModelError:
    page = f"{endpoint()}/{repo}"
    token = "the token in use has no access" if _token() else "no token is set"
    return BaseModelError(
        f"{repo} is gated: the hub hands it out only to accounts that accepted its licence (HTTP {status}; {token})",
        where=page,
        fix=f"1. sign in and accept the licence at {page}  2. make a read token in your account's settings  "
        f"3. export HF_TOKEN=<token> and run again; or {catalog.alternatives()}",
    )


def _no_hub(repo: str, what: str, fix: str) -> MachineError:
    return MachineError(
        f"{what}, and {repo} is not in the cache",
        where=endpoint(),
        fix=f"{fix}; a download that was cut off goes on where it stopped; or {catalog.alternatives()}",
    )
