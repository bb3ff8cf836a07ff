"""A quiet stage that remembers what it was told, and a hub on the loopback interface."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.progress import Reporter
from tests.bases import hub as stand_in
from tests.bases import small


class Told(Reporter):
    """A reporter that keeps its notes and updates."""

    def __init__(self) -> None:
        super().__init__("plain", quiet=True)
        self.notes: list[str] = []
        self.updates: list[tuple[float, float]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def _show_update(self, stage, now, done, total, unit, left, metrics) -> None:
        self.updates.append((done, total))


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def quiet(told):
    with told.stage("base") as stage:
        yield stage


@pytest.fixture
def on_hub(monkeypatch, tmp_path):
    """Serve a tiny repository as the hub; no token, not offline."""
    import huggingface_hub.constants as constants

    from pipeline.bases import hub

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(hub, "_ATTEMPTS", 1)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with stand_in.serve(stand_in.Hub(small.checkpoint())) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        yield served


@pytest.fixture
def folder(tmp_path) -> Path:
    return small.write(tmp_path / "checkpoint", small.checkpoint())
