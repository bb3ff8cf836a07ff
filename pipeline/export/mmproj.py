"""The projector of a multimodal base: exported, loaded together with the model, and shown pictures."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import LlamaCpp
from pipeline.errors import ExportError, ValidationError
from pipeline.export.convert import convert
from pipeline.export.merge import tensor_slots
from pipeline.llama_server import LlamaServer, serve

_QUESTION = "What do you see?"


def export(
    checkpoint: Path, model: Path, out: Path, llama: LlamaCpp, metadata: dict[str, Any], threads: int
) -> tuple[Path | None, str]:
    """Write the projector and prove it with `model`; gives its path and what was seen, or None and the reason.

    Raises ExportError when a base that reads images gives a projector that llama.cpp cannot use.
    """
    config = files.read_json(checkpoint / "config.json")
    if "vision_config" not in config:
        return None, f"{metadata.get('general.basename', config.get('model_type'))} reads text only"
    if not has_vision(checkpoint):
        return (
            None,
            f"this checkpoint of {config.get('model_type')} holds no vision tower: its text-only form was taken",
        )
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        # f16 whatever the base: llama.cpp has no bf16 convolutions
        convert(_seeing(checkpoint, Path(folder)), out, llama, metadata, outtype="f16", mmproj=True)
    return out, prove(model, out, llama, threads)


def has_vision(checkpoint: Path) -> bool:
    """Whether any tensor belongs to a vision tower."""
    return any("vision" in slot.name for slot in tensor_slots(checkpoint))


def _seeing(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint without its audio tower, where it has one: llama.cpp would not use it, and it is two thirds of
    Gemma 3n's projector file."""
    slots = tensor_slots(checkpoint)
    kept = [slot for slot in slots if "vision" in slot.name or "multi_modal_projector" in slot.name]
    if not any("audio" in slot.name for slot in slots):
        return checkpoint
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors" and not path.name.endswith(".safetensors.index.json"):
            shutil.copy(path, folder / path.name)
    header, offset = {}, 0
    for slot in kept:
        size = slot.end - slot.start
        header[slot.name] = {"dtype": slot.dtype, "shape": slot.shape, "data_offsets": [offset, offset + size]}
        offset += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for slot in kept:
            with slot.file.open("rb") as source:
                source.seek(slot.start)
                file.write(source.read(slot.end - slot.start))
    return folder


def prove(model: Path, projector: Path, llama: LlamaCpp, threads: int) -> str:
    """Ask about two pictures. Raises ExportError unless both are read and change what the model expects to say."""
    arguments = ("--mmproj", str(projector), "--no-mmproj-offload")
    try:
        with serve(llama, model, threads=threads, context=2048, arguments=arguments) as server:
            plain = _ask(server, None)
            seen = [_ask(server, picture(256, blue)) for blue in (40, 220)]
    except ValidationError as error:
        raise ExportError(
            f"llama.cpp cannot use the projector: {error.what}",
            where=str(projector),
            fix="report the base: its images cannot be used with this llama.cpp",
        ) from error
    tokens = seen[0][0] - plain[0]
    if tokens < 4:
        raise ExportError(
            f"a picture adds {tokens} tokens to the prompt: the projector is not used",
            where=str(projector),
            fix="remove the run's export folder and run again",
        )
    if seen[0][1] == seen[1][1]:
        raise ExportError(
            "two different pictures leave the model with the same expectations: the projector passes nothing on",
            where=str(projector),
            fix="report the base: its images cannot be used with this llama.cpp",
        )
    return f"two test pictures read, {tokens} tokens each"


def _ask(server: LlamaServer, image: bytes | None) -> tuple[int, list[Any]]:
    """The prompt's length in tokens, and the likeliest first tokens of the reply with their log-probabilities."""
    content: list[dict[str, Any]] = [{"type": "text", "text": _QUESTION}]
    if image is not None:
        url = "data:image/png;base64," + base64.b64encode(image).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 10,
        "cache_prompt": False,
    }
    reply = server.post("/v1/chat/completions", body)
    choices = (reply["choices"][0].get("logprobs") or {}).get("content") or [{}]
    expected = [(entry["id"], entry["logprob"]) for entry in choices[0].get("top_logprobs", [])]
    return int(reply["usage"]["prompt_tokens"]), expected


def picture(size: int, blue: int) -> bytes:
    """A square PNG: red grows to the right, green downwards, with a disc in the middle; 8 bits a channel."""
    rows = bytearray()
    for y in range(size):
        rows.append(0)  # no filter on this row
        for x in range(size):
            inside = (2 * x - size) ** 2 + (2 * y - size) ** 2 < (size * 0.7) ** 2
            rows += bytes((255 * x // size, 255 * y // size, blue if inside else 255 - blue))
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(rows), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
