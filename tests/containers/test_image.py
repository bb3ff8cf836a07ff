"""What is in the CPU image, and what must not be."""

import contextlib
import json
import os
import re
import socket
import tarfile
import tempfile
from pathlib import Path

import pytest

from tests.containers.machine import ROOT

pytestmark = pytest.mark.containers
GIGABYTE, MEGABYTE = 1_000_000_000, 1_000_000
PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s+(\S{64}\s\S{64})")
TOKEN = re.compile(
    rb"\b(hf_[A-Za-z0-9]{34}|gh[pousr]_[A-Za-z0-9]{36}|glpat-[\w-]{20}|AKIA[0-9A-Z]{16}|BEGIN \w+ PRIVATE KEY-----\n\w)"
)
PUBLIC = "site-packages/transformers/testing_utils.py"  # its authors publish a token of a test account there


@pytest.fixture(scope="module")
def layers(image):
    """Every layer of the image as an open tar archive, the base image's first."""
    with tempfile.TemporaryFile() as saved:
        for chunk in image.save():
            saved.write(chunk)
        saved.seek(0)
        with tarfile.open(fileobj=saved) as archive, contextlib.ExitStack() as opened:
            yield [opened.enter_context(tarfile.open(fileobj=archive.extractfile(name))) for name in _layers(archive)]


@pytest.fixture(scope="module")
def history(image):
    return image.history()


def test_the_cpu_image_is_at_most_two_gigabytes(history):
    assert sum(step["Size"] for step in history) <= 2.0 * GIGABYTE


def test_llama_cpp_is_at_most_120_megabytes(history):
    sizes = [step["Size"] for step in history if "/opt/llama.cpp /opt/llama.cpp" in step["CreatedBy"]]
    assert len(sizes) == 1
    assert 0 < sizes[0] <= 120 * MEGABYTE


def test_it_runs_as_a_user_without_rights(image):
    assert image.attrs["Config"]["User"] == "1000"


def test_no_layer_holds_a_compiler_a_cache_or_noise(layers):
    unwanted = re.compile(
        r"(^|/)(gcc|g\+\+|cc1plus|cmake|ninja|ccache)$|\.pyc$|(^|/)\.cache/.|^var/log/.*\w\.log$|\.deb$|^root/.*pip"
    )
    found = [
        member.name for layer in layers[1:] for member in layer if member.isfile() and unwanted.search(member.name)
    ]
    assert found == []


def test_llama_cpp_has_a_backend_for_any_cpu_and_for_the_fastest(layers):
    names = {member.name.rpartition("/")[2] for layer in layers for member in layer}
    assert {"llama-server", "llama-quantize", "dm-logits"} <= names
    if os.uname().machine == "x86_64":
        assert {f"libggml-cpu-{kind}.so" for kind in ("x64", "haswell", "skylakex", "sapphirerapids")} <= names


def test_no_layer_holds_a_secret_or_a_name_of_this_machine(layers, history):
    words = _private_words(layers)
    commands = "\n".join(step["CreatedBy"] for step in history).encode()
    assert [word for word in words if word in commands] == []
    found = [f"{member.name}: {word!r}" for layer in layers[1:] for member, word in _search(layer, words)]
    assert found == []


def test_a_planted_secret_would_be_found(tmp_path):
    (tmp_path / "settings").write_bytes(b"token=" + b"hf_" + b"A" * 34)
    with tarfile.open(tmp_path / "layer.tar", "w") as made:
        made.add(tmp_path / "settings", "etc/settings")
    with tarfile.open(tmp_path / "layer.tar") as layer:
        assert [member.name for member, _ in _search(layer, [])] == ["etc/settings"]


def _search(layer, words):
    """Files of a layer that hold one of the words, or something that looks like a token."""
    for member in layer:
        if member.isfile():
            content = layer.extractfile(member).read()
            yield from ((member, word) for word in words if word in content)
            if not member.name.endswith(PUBLIC) and (match := TOKEN.search(content)):
                yield member, match[0]


def _private_words(layers):
    """This machine's name, the checkout's path, its proxies and indexes, and certificates that are not Debian's."""
    values = [os.environ.get(name, "") for name in ("PIP_INDEX_URL", "HTTPS_PROXY", "https_proxy")]
    words = [name.encode() for name in (socket.gethostname(), str(ROOT), *values) if len(name) > 5]
    packaged = [
        layer.extractfile(member).read()
        for layer in layers
        for member in layer
        if member.isfile() and "usr/share/ca-certificates/" in member.name
    ]
    public = {head for bundle in packaged for head in PEM.findall(bundle)}
    bundles = {os.environ.get(name, "") for name in ("PIP_CERT", "SSL_CERT_FILE")}
    own = {head for name in bundles if Path(name).is_file() for head in PEM.findall(Path(name).read_bytes())}
    return words + sorted(own - public)


def _layers(archive):
    return json.load(archive.extractfile("manifest.json"))[0]["Layers"]
