"""A stand-in for the model hub on the loopback interface: one tiny repository, with every trouble a hub can give."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`files` are served as they are; `published` overrides the digest that the hub claims for one; `cut` ends a file
    after so many bytes, `pages` are what a proxy answers instead of one, `broken` makes it answer 503, and `breaks_after` does so once it was asked for."""

    files: dict[str, bytes]
    repo: str = "tiny/base"
    commit: str = COMMIT
    gated: bool = False
    licence: str = "apache-2.0"
    members: tuple[str, ...] = ("Bearer hf_member",)
    published: dict[str, str] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    breaks_after: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    address: str = ""

    def asked_for(self, name: str) -> list[str | None]:
        """The Range header of every GET of a file."""
        return [ranged for method, path, ranged in self.requests if method == "GET" and path.endswith("/" + name)]

    def info(self) -> dict[str, object]:
        return {
            "id": self.repo,
            "modelId": self.repo,
            "sha": self.commit,
            "private": False,
            "tags": [],
            "downloads": 0,
            "gated": "manual" if self.gated else False,
            "cardData": {"license": self.licence},
            "siblings": [self._sibling(name, content) for name, content in self.files.items()],
        }

    def _sibling(self, name: str, content: bytes) -> dict[str, object]:
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        fields: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": git}
        if name.endswith((".safetensors", ".bin")):
            digest = self.published.get(name, hashlib.sha256(content).hexdigest())
            fields["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
        return fields


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:  # noqa: C901 (a class, not a function of many branches)
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path, self.headers.get("Range")))
            if path.startswith(f"/api/models/{hub.repo}"):
                if "/revision/" in path and path.rpartition("/")[2] not in (hub.commit, "main"):
                    return self._error(404, "RevisionNotFound")
                return self._send(200, json.dumps(hub.info()).encode(), body, {"Content-Type": "application/json"})
            if not path.startswith(f"/{hub.repo}/resolve/"):
                return self._error(401 if not self.headers.get("Authorization") else 404, "RepoNotFound")
            return self._file(path.split("/", 5)[5], body)

        def _file(self, name: str, body: bool) -> None:
            credentials = self.headers.get("Authorization")
            if hub.gated and credentials not in hub.members:
                return self._error(403 if credentials else 401, "GatedRepo")
            if name in hub.broken:
                return self._error(503, "")
            if name not in hub.files:
                return self._error(404, "EntryNotFound")
            if body and name in hub.breaks_after:
                hub.breaks_after.remove(name)
                hub.broken.add(name)
            content, status = hub.pages.get(name, hub.files[name]), 200
            headers = {"X-Repo-Commit": hub.commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            if ranged := self.headers.get("Range"):
                first = int(ranged.removeprefix("bytes=").rstrip("-"))
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
                content, status = content[first:], 206
            return self._send(status, content, body, headers, hub.cut.get(name))

        def _send(
            self, status: int, content: bytes, body: bool, headers: dict[str, str], cut: int | None = None
        ) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content[:cut])
            if cut is not None:
                self.close_connection = True

        def _error(self, status: int, code: str) -> None:
            self._send(status, b"", False, {"X-Error-Code": code} if code else {})

    return Handler


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
