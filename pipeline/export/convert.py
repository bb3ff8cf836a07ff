"""Checkpoint → GGUF by llama.cpp's own converter, then a look at what was written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import LlamaCpp
from pipeline.errors import ExportError

# Activations of Gemma leave the range of fp16; its weights are kept in the precision they were published in.
_BF16_FAMILIES = ("gemma",)


def output_type(checkpoint: Path) -> str:
    config = files.read_json(checkpoint / "config.json")
    return "bf16" if str(config.get("model_type", "")).startswith(_BF16_FAMILIES) else "f16"


def convert(checkpoint: Path, out: Path, llama: LlamaCpp, metadata: dict[str, Any], mmproj: bool = False) -> None:
    """Write a GGUF. `metadata` holds standard `general.*` keys; equal inputs give equal bytes.

    Raises ExportError with the converter's last words when it fails, or when the file lacks what an app needs.
    """
    with files.atomic_path(out) as temporary, files.atomic_path(out.with_suffix(".metadata.json")) as overrides:
        overrides.write_text(json.dumps(metadata), encoding="utf-8")
        command = [sys.executable, str(llama.converter), str(checkpoint), "--outfile", str(temporary)]
        command += ["--outtype", output_type(checkpoint), "--metadata", str(overrides)] + (
            ["--mmproj"] if mmproj else []
        )
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "NO_LOCAL_GGUF": ""}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        written = temporary if temporary.is_file() else None
        if done.returncode or written is None:
            raise ExportError(
                f"llama.cpp's converter failed with exit code {done.returncode}: {_last_words(done.stderr)}",
                where=str(checkpoint),
                fix="the base's architecture or tokenizer may be unknown to this llama.cpp; choose a base from the catalogue",
            )
        if not mmproj:
            check(written, checkpoint)
    files.remove(out.with_suffix(".metadata.json"))


def check(gguf: Path, checkpoint: Path) -> None:
    """Raise ExportError unless the GGUF has the checkpoint's chat template and a matching end-of-turn token."""
    fields = read_fields(gguf)
    template = chat_template(checkpoint)
    if template is not None and fields.get("tokenizer.chat_template") != template:
        raise ExportError(
            "the GGUF's chat template differs from the base's",
            where=str(gguf),
            fix="keep the base's own tokenizer files byte for byte",
        )
    for key, name in (("tokenizer.ggml.eos_token_id", "EOS"), ("tokenizer.ggml.bos_token_id", "BOS")):
        expected = token_id(checkpoint, name.lower())
        if expected is not None and fields.get(key) not in (expected, None):
            raise ExportError(
                f"the GGUF's {name} is token {fields.get(key)}, the base's is {expected}",
                where=str(gguf),
                fix="mend the tokenizer files",
            )


def read_fields(gguf: Path) -> dict[str, Any]:
    """The GGUF's scalar and string fields; arrays are given by their length."""
    from gguf import GGUFReader

    fields: dict[str, Any] = {}
    for name, field in GGUFReader(gguf).fields.items():
        value = len(field.data) if field.types and field.types[0].name == "ARRAY" else field.contents()
        fields[name] = value
    return fields


def chat_template(checkpoint: Path) -> str | None:
    """The checkpoint's chat template, from its own file or from the tokenizer's settings."""
    own = checkpoint / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    settings = checkpoint / "tokenizer_config.json"
    template = files.read_json(settings).get("chat_template") if settings.is_file() else None
    return template if isinstance(template, str) else None


def token_id(checkpoint: Path, kind: str) -> int | None:
    """The id of the tokenizer's bos or eos token, looked up in tokenizer.json."""
    settings, vocabulary = checkpoint / "tokenizer_config.json", checkpoint / "tokenizer.json"
    if not settings.is_file() or not vocabulary.is_file():
        return None
    token = files.read_json(settings).get(f"{kind}_token")
    text = token.get("content") if isinstance(token, dict) else token
    added = {entry["content"]: entry["id"] for entry in files.read_json(vocabulary).get("added_tokens", [])}
    found = added.get(text)
    return int(found) if found is not None else None


def _last_words(output: str) -> str:
    lines = [line for line in output.strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"
