"""What tests share: the built llama.cpp and the embedded base, both from the project's own cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "artifacts" / "cache"


@pytest.fixture(scope="session")
def stage():
    from pipeline.progress import Reporter

    with Reporter("plain", quiet=True).stage("test") as stage:
        yield stage


@pytest.fixture(scope="session")
def llama(stage):
    """llama.cpp, built from the pinned source."""
    from pipeline.environment import llama_cpp

    return llama_cpp.ensure(CACHE, stage)


@pytest.fixture(scope="session")
def smollm2(stage):
    """The embedded base, unpacked."""
    from pipeline.bases import fetch

    return fetch.ensure("smollm2-135m", CACHE, stage)
