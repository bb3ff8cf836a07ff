"""What tests share: the built llama.cpp and the embedded base, both from the project's own cache."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; the tests' children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What is drawn is the same each time, and no example is held to a clock: DM_FORGE_FUZZ=1 draws anew, for finding more.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=200)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=5000)
hypothesis.settings.load_profile("fuzz" if os.environ.get("DM_FORGE_FUZZ") else "fixed")

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


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A slice of the real corpus: seven scenarios of each category (some are held out), one file of drills; none of the
    paraphrases, which speak of scenarios that are not in the slice."""
    source, folder = ROOT / "training_data", tmp_path_factory.mktemp("corpus")
    for path in source.glob("*.yaml"):
        shutil.copy(path, folder)
    for category in sorted(path for path in source.iterdir() if path.is_dir() and path.name != "paraphrases"):
        (folder / category.name).mkdir()
        for path in sorted(category.glob("*.md"))[: 1 if category.name == "drills" else 7]:
            shutil.copy(path, folder / category.name)
    return folder
