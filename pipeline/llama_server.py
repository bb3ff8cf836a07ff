"""A llama-server of our own on the loopback interface, for as long as a `with` block lasts."""

from __future__ import annotations

import ctypes
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.artifacts import LlamaCpp
from pipeline.errors import ValidationError

_START_SECONDS = 180
_LISTENING = re.compile(r"listening on (http://127\.0\.0\.1:[1-9]\d*)\s")  # said once the model is loaded


class LlamaServer:
    def __init__(self, process: subprocess.Popen[bytes], log: Path, model: Path) -> None:
        self._process = process
        self._url = ""  # until it listens: the system picks the port, so that no other process can take it before
        self._log = log
        self._model = model

    @property
    def pid(self) -> int:
        return self._process.pid

    def post(self, path: str, body: dict[str, Any], timeout: float = 600) -> Any:
        """POST JSON and give the JSON reply. Raises ValidationError when the server has died or refuses."""
        request = urllib.request.Request(
            f"{self._url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return self._ask(request, timeout)

    def get(self, path: str, timeout: float = 10) -> Any:
        return self._ask(urllib.request.Request(f"{self._url}{path}"), timeout)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._died()
            if found := _LISTENING.search(self._log.read_text(errors="replace")):
                self._url = found[1]
                return
            time.sleep(0.05)
        raise ValidationError(
            f"llama-server did not answer within {_START_SECONDS} s",
            where=str(self._model),
            fix="close other programs and run again",
        )

    def _ask(self, request: urllib.request.Request, timeout: float) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            raise ValidationError(
                f"llama-server answered {error.code} to {request.selector}: {error.read().decode(errors='replace')[:300]}",
                where=str(self._model),
                fix="see the server's log in the message, or run again",
            ) from error
        except (urllib.error.URLError, ConnectionError, TimeoutError, json.JSONDecodeError) as error:
            time.sleep(0.2)  # a dying process needs a moment before it can be waited for
            if self._process.poll() is not None:
                raise self._died() from error
            raise ValidationError(
                f"llama-server did not answer {request.selector}: {error}", where=str(self._model), fix="run again"
            ) from error

    def _died(self) -> ValidationError:
        code = self._process.poll()
        cause = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        tail = self._log.read_text(errors="replace").strip().splitlines()[-8:]
        return ValidationError(
            f"llama-server died ({cause}). Its last words:\n    " + "\n    ".join(tail),
            where=str(self._model),
            fix="if memory ran out, close other programs; then run again: finished stages are kept",
        )


@contextmanager
def serve(
    llama: LlamaCpp, model: Path, *, threads: int, context: int = 2048, arguments: tuple[str, ...] = ()
) -> Iterator[LlamaServer]:
    """Serve `model` with one slot of `context` tokens; the process ends with the block."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [str(llama.tool("llama-server")), "--model", str(model), "--host", "127.0.0.1", "--port", "0"]
        command += [
            "--threads",
            str(threads),
            "--threads-batch",
            str(threads),
            "--parallel",
            "1",
            "--ctx-size",
            str(context),
        ]
        command += ["--jinja", "--no-webui", *arguments]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,
            )
        server = LlamaServer(process, log, model)
        try:
            server.wait_until_ready()
            yield server
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _die_with_parent() -> None:
    """A run that is killed outright must leave no server behind (Linux only; elsewhere the server stays idle)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
