"""Does a client that is not ours load the file and play it? `@fugood/llama.node` has llama.rn's interface, on Node.

client.js beside this file is the app's agent; the dice are thrown here. The package is installed on demand into the
cache, held to the digests in package-lock.json; where that cannot be done, the check is skipped and says why.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline import files
from pipeline.artifacts import LlamaCpp
from pipeline.data.dataset import Conversation
from pipeline.data.tools import Call
from pipeline.errors import MachineError
from pipeline.game import Table, toolcall_text
from pipeline.llama_server import serve
from pipeline.validation.play import turns

State = Literal["played", "failed", "skipped"]
_HERE = Path(__file__).parent
_CLIENT, _LOCK = _HERE / "client.js", _HERE / "package-lock.json"
_MARK = "@ "  # the library writes to stdout as well
_TURNS, _TOKENS = 4, 96
_ENOUGH = 120  # seconds: a reply that ends later ends the game; a smoke test need not be long
_LONGEST = 900  # seconds until a client that says nothing is ended
_THREADS = 4  # what the app asks for


def check(
    model: Path, conversations: Sequence[Conversation], llama: LlamaCpp, cache_dir: Path, threads: int, seed: int = 7
) -> dict[str, Any]:
    """Play one short game; returns its state, the reason for it in words, and the game.

    "failed" is said where the client cannot load the file, renders another prompt than llama-server, or says nothing.
    """
    game = _game(conversations)
    if game is None:
        return {"state": "skipped", "reason": "no held-out conversation begins with a call"}
    try:
        folder = installed(cache_dir)
    except MachineError as error:
        return {"state": "skipped", "reason": error.what}
    system = game.messages[0]["content"]
    lines = [message["content"] for message in game.messages if message["role"] == "user"]
    request = {
        "model": str(model.resolve()),
        "threads": min(_THREADS, threads),
        "system": system,
        "players": [line for line in lines if toolcall_text(line) is None],
        "turns": min(_TURNS, turns(game)),
        "tokens": _TOKENS,
    }
    with serve(llama, model, threads=threads) as server:
        wanted = server.post("/apply-template", {"messages": [dict(message) for message in game.messages[:2]]})[
            "prompt"
        ]
    return _verdict(_play(folder, request, Table(system, seed)), wanted) | {"conversation": game.id}


def lines(result: dict[str, Any]) -> list[str]:
    """The game as lines for a terminal."""
    found = []
    for turn in result["turns"]:
        found += [f"> {turn['player']}", turn["shown"], *(f"  ⚄ {line}" for line in turn["results"])]
        found += [*(f"  ✗ {call} is no call that the app could carry out" for call in turn["ignored"]), ""]
    return [*found, result["reason"]]


def installed(cache_dir: Path) -> Path:
    """The folder that holds the client's node_modules. Raises MachineError, in npm's words, where there is none."""
    folder = cache_dir / "runtimes" / files.sha256_file(_LOCK)[:16]
    if folder.is_dir():
        return folder
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            raise MachineError(f"{tool} is not on this machine", fix="install Node 20 or newer")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        for file in (_LOCK, _LOCK.with_name("package.json")):
            shutil.copy(file, name)
        # Install scripts are not wanted: the binary for each system is a package of its own.
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        done = subprocess.run(command, cwd=name, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [
                line.removeprefix("npm error ") for line in done.stderr.splitlines() if line.startswith("npm error")
            ]
            raise MachineError(
                f"npm could not install the client: {'; '.join(said[:3]) or f'exit code {done.returncode}'}",
                fix="connect to the network and run again",
            )
        made = Path(name) / "installed"
        made.mkdir()
        (Path(name) / "node_modules").rename(made / "node_modules")
        made.rename(folder)
    return folder


def _game(conversations: Sequence[Conversation]) -> Conversation | None:
    """The shortest conversation that begins with a call."""
    opening = ["system", "user", "assistant", "user"]
    fit = [
        item
        for item in conversations
        if [message["role"] for message in item.messages[:4]] == opening
        and toolcall_text(item.messages[3]["content"]) is not None
    ]
    return min(fit, key=lambda item: (sum(len(message["content"]) for message in item.messages), item.id), default=None)


def _play(folder: Path, request: dict[str, Any], table: Table) -> dict[str, Any]:
    """What the client said: `loaded`, `prompt`, `turns`, and the last words of its log where it failed."""
    played: dict[str, Any] = {"turns": [], "error": None}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        client = subprocess.Popen(
            ["node", str(_CLIENT), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        watch = threading.Timer(_LONGEST, client.kill)
        watch.start()
        try:
            for event in _events(client, request):
                if "reply" in event:
                    calls = [Call(tool, arguments) for tool, arguments in event["calls"]]
                    thrown = [(call, table.execute(call)) for call in calls]
                    results = [result for _, result in thrown if result]
                    ignored = [str(call) for call, result in thrown if not result]
                    played["turns"].append(event | {"results": results, "ignored": ignored})
                    if time.monotonic() - started > _ENOUGH:
                        break
                    _say(client, {"results": results})
                else:
                    played |= event
        finally:
            watch.cancel()
            if client.stdin:
                client.stdin.close()
        if client.wait() and not played["turns"]:
            log.seek(0)
            played["error"] = " ".join(log.read().strip().splitlines()[-3:]) or f"exit code {client.returncode}"
    return played | {"seconds": round(time.monotonic() - started, 1)}


def _events(client: subprocess.Popen[str], request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    _say(client, request)
    for line in client.stdout or ():
        if line.startswith(_MARK):
            yield json.loads(line.removeprefix(_MARK))


def _say(client: subprocess.Popen[str], value: dict[str, Any]) -> None:
    if client.stdin:
        client.stdin.write(json.dumps(value) + "\n")
        client.stdin.flush()


def _verdict(played: dict[str, Any], wanted: str) -> dict[str, Any]:
    said = played["turns"]
    calls = sum(len(turn["calls"]) for turn in said)
    legal = sum(len(turn["results"]) for turn in said)
    client = f"@fugood/llama.node {played.get('version', '')}".strip()
    result = {
        "client": client,
        "llama_cpp": (played.get("build") or {}).get("commit"),
        "same_prompt": played.get("prompt") == wanted,
        "calls": calls,
        "legal_calls": legal,
        "stopped": sum(bool(turn["stopped"]) for turn in said),
        "turns": said,
        "seconds": played["seconds"],
    }
    if "loaded" not in played:
        return result | {"state": "failed", "reason": f"{client} cannot load the file: {played['error']}"}
    if not result["same_prompt"]:
        return result | {"state": "failed", "reason": f"{client} renders another prompt than llama-server"}
    if not said or not any(turn["reply"].strip() for turn in said):
        return result | {"state": "failed", "reason": f"{client} loads the file, but no reply came"}
    words = f"{client} loads the file; turns played {len(said)}, calls made {calls}, of them carried out {legal}"
    return result | {"state": "played", "reason": words}
