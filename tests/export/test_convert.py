import json
import subprocess
import sys

import pytest

from pipeline.export.convert import convert
from tests import gemma3n, tiny

NAMES = {"general.name": "tiny"}


def checkpoint(name, folder, smollm2):
    if name in tiny.ARCHITECTURES:
        return tiny.checkpoint(folder / "checkpoint", name, smollm2.path)
    if name == "gemma3n":
        return gemma3n.multimodal(folder / "checkpoint")
    gemma3n.tokenizer(folder / "tokenizer")
    return tiny.gemma3_vision(folder / "checkpoint", folder / "tokenizer")


@pytest.mark.dear
@pytest.mark.parametrize("name", [*tiny.ARCHITECTURES, "gemma3", "gemma3n"])
def test_the_converter_started_our_way_writes_the_bytes_of_the_one_started_as_it_comes(name, tmp_path, llama, smollm2):
    source = checkpoint(name, tmp_path, smollm2)
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    ours, plain = tmp_path / "ours", tmp_path / "plain"
    for projector in [False, True] if name in ("gemma3", "gemma3n") else [False]:
        convert(source, ours, llama, NAMES, outtype="f16", mmproj=projector)
        command = [sys.executable, str(llama.converter), str(source), "--outfile", str(plain), "--outtype", "f16"]
        command += ["--metadata", str(tmp_path / "names.json"), *(["--mmproj"] if projector else [])]
        subprocess.run(command, check=True, capture_output=True)
        assert ours.read_bytes() == plain.read_bytes()
