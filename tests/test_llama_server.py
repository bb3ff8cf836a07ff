"""A server that cannot start or dies under way is explained, and none is left behind."""

import os
import signal
import time

import pytest

from pipeline.errors import ValidationError
from pipeline.llama_server import serve
from tests import tiny_gguf


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_damaged_file_is_explained_with_the_servers_last_words(tmp_path, llama):
    (tmp_path / "half.gguf").write_bytes(b"GGUF" + bytes(64))
    with (
        pytest.raises(ValidationError, match="llama-server died") as error,
        serve(llama, tmp_path / "half.gguf", threads=1),
    ):
        pass
    assert "half.gguf" in str(error.value)


def test_a_server_killed_under_way_is_named_with_its_signal(model, llama):
    with pytest.raises(ValidationError, match="killed by SIGKILL"), serve(llama, model, threads=1) as server:
        os.kill(server.pid, signal.SIGKILL)
        time.sleep(0.2)
        server.get("/health")


def test_no_server_outlives_its_block(model, llama):
    with serve(llama, model, threads=1) as server:
        assert server.get("/health")["status"] == "ok"
    assert gone(server.pid)
