import zlib

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import ExportError
from pipeline.export import mmproj
from pipeline.export.convert import convert
from pipeline.export.reference import language_model
from tests import gemma3n, tiny
from tests.export import planted

NAMES = {"general.name": "tiny", "general.basename": "tiny-gemma-3"}


@pytest.fixture(scope="module")
def vision(tmp_path_factory, llama):
    folder = tmp_path_factory.mktemp("vision")
    gemma3n.tokenizer(folder / "tokenizer")
    checkpoint = tiny.gemma3_vision(folder / "checkpoint", folder / "tokenizer")
    convert(checkpoint, folder / "model.gguf", llama, NAMES)
    return folder


def test_the_projector_of_gemma_3_reads_a_picture_and_one_that_passes_nothing_on_is_caught(vision, llama):
    out = vision / "mmproj-f16.gguf"
    path, told = mmproj.export(vision / "checkpoint", vision / "model.gguf", out, llama, NAMES, 1)
    assert path == out and told == "two test pictures read, 18 tokens each"
    planted.zero(out, "mm.input_projection.weight")
    with pytest.raises(ExportError, match="the projector passes nothing on"):
        mmproj.prove(vision / "model.gguf", out, llama, 1)


def test_the_language_model_of_a_multimodal_checkpoint_is_read_under_its_published_names(vision, llama, tmp_path):
    found = language_model(vision / "checkpoint").state_dict()["model.layers.0.mlp.up_proj.weight"]
    published = load_file(vision / "checkpoint/model.safetensors")["language_model.model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(found, published.float())


def test_a_broken_projector_is_refused_with_the_servers_words(vision, llama, tmp_path):
    (tmp_path / "mmproj.gguf").write_bytes((vision / "model.gguf").read_bytes())
    with pytest.raises(ExportError, match=r"llama\.cpp cannot use the projector: llama-server died"):
        mmproj.prove(vision / "model.gguf", tmp_path / "mmproj.gguf", llama, 1)


def test_a_text_only_base_gives_no_projector_and_says_why(smollm2, llama, tmp_path):
    checkpoint = tiny.checkpoint(tmp_path / "base", "llama", smollm2.path)
    path, told = mmproj.export(
        checkpoint, tmp_path / "m.gguf", tmp_path / "p.gguf", llama, {"general.basename": "smollm2"}, 1
    )
    assert path is None and told == "smollm2 reads text only"
    assert not (tmp_path / "p.gguf").exists()


def test_the_picture_is_a_png_and_the_colour_matters():
    image = mmproj.picture(16, 40)
    assert image.startswith(b"\x89PNG\r\n\x1a\n") and image[16:24] == b"\0\0\0\x10\0\0\0\x10"
    at = image.index(b"IDAT") + 4
    assert len(zlib.decompress(image[at : image.index(b"IEND") - 8])) == 16 * (1 + 3 * 16)
    assert image != mmproj.picture(16, 220)
