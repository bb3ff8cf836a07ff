"""A client that is not ours: what counts as loaded and played, and that it is installed by its hashes or not at all."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.config import ExportConfig, GateConfig
from pipeline.errors import MachineError
from pipeline.validation import gate, runtime
from pipeline.validation.runtime import llama_node as client
from tests import tiny_gguf
from tests.conftest import CACHE
from tests.validation.samples import conversation
from tests.validation.test_gate import measured

HERE = Path(client.__file__).parent
TURN = {"player": "I hide.", "reply": "Dark. [roll: stealth]", "shown": "Dark.", "calls": [["roll", "stealth"]]}
TURN |= {"stopped": True, "results": ["stealth: 3 + 2(skill) = *5*"], "ignored": ["[dance: jig]"]}
PLAYED = {"loaded": "tiny", "version": "1.0", "build": {"commit": "abc"}, "prompt": "P", "seconds": 1.0, "error": None}


def test_every_package_of_the_lock_has_a_hash_and_no_address():
    lock = json.loads((HERE / "package-lock.json").read_text())
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert lock["packages"][""]["dependencies"] == wanted
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    assert not any("resolved" in entry or "hasInstallScript" in entry for entry in packages.values())


def test_a_game_that_was_played_says_what_was_carried_out():
    found = client._verdict(PLAYED | {"turns": [TURN]}, "P")
    assert (found["state"], found["calls"], found["legal_calls"], found["stopped"]) == ("played", 1, 1, 1)
    said = "\n".join(runtime.lines(found))
    assert "stealth: 3" in said and "[dance: jig] is no call that the app could carry out" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loaded": None, "turns": [], "error": "unknown model architecture"}, "unknown model architecture"),
        ({"prompt": "Q", "turns": [TURN]}, "another prompt"),
        ({"turns": []}, "no reply"),
        ({"turns": [TURN | {"reply": " "}]}, "no reply"),
    ],
)
def test_a_client_that_cannot_play_is_a_failure_and_the_gate_refuses(changes, words):
    played = {key: value for key, value in (PLAYED | changes).items() if value is not None or key == "error"}
    found = client._verdict(played, "P")
    assert found["state"] == "failed"
    assert words in found["reason"]
    refused = gate.reasons(measured() | {"runtime_check": found}, GateConfig(), ExportConfig())
    assert len(refused) == 1
    assert words in refused[0]


def test_without_node_it_is_skipped_and_says_so(tmp_path, monkeypatch, llama):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = runtime.check(tmp_path / "any.gguf", [conversation(0)], llama, tmp_path, 1)
    assert found == {"state": "skipped", "reason": "node is not on this machine"}
    assert not gate.reasons(measured() | {"runtime_check": found}, GateConfig(), ExportConfig())


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not on this machine")
def test_what_npm_cannot_install_is_said_in_its_words(tmp_path, monkeypatch):
    monkeypatch.setenv("npm_config_offline", "true")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "empty"))
    with pytest.raises(MachineError, match="npm could not install"):
        client.installed(tmp_path)
    assert not list((tmp_path / "runtimes").iterdir())


@pytest.mark.dear
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not on this machine")
def test_llama_node_loads_a_file_of_ours_and_plays_it(tmp_path, llama):
    model = tiny_gguf.write(tmp_path / "babble.gguf")
    cache = CACHE
    found = runtime.check(model, [conversation(0)], llama, cache, 1)
    assert found["state"] == "played", found["reason"]
    assert found["same_prompt"]
    assert found["client"].startswith("@fugood/llama.node 1.")
    assert 1 <= len(found["turns"]) <= 4
    half = tmp_path / "half.gguf"
    half.write_bytes(model.read_bytes()[:200_000])
    played = client._play(
        client.installed(cache),
        {"model": str(half), "threads": 1, "system": "", "players": ["x"], "turns": 1, "tokens": 4},
        None,
    )  # type: ignore[arg-type]
    assert client._verdict(played, "")["state"] == "failed"
