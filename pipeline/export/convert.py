"""Checkpoint → GGUF by llama.cpp's own converter, then a look at what was written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import LlamaCpp
from pipeline.errors import ExportError
from pipeline.gguf_file import read_head

# Activations of Gemma leave the range of fp16; its weights are kept in the precision they were published in.
_BF16_FAMILIES = ("gemma",)
_SPACE = "▁"  # SentencePiece's space
STARTER = Path(__file__).with_name("converter.py")
_NOT_TEXT = (2, 3, 4)  # GGUF token types unknown, control, user defined


def output_type(checkpoint: Path) -> str:
    config = files.read_json(checkpoint / "config.json")
    return "bf16" if str(config.get("model_type", "")).startswith(_BF16_FAMILIES) else "f16"


def convert(
    checkpoint: Path,
    out: Path,
    llama: LlamaCpp,
    metadata: dict[str, Any],
    *,
    outtype: str | None = None,
    mmproj: bool = False,
) -> None:
    """Write a GGUF. `metadata` holds standard `general.*` keys; equal inputs give equal bytes.

    `outtype` is f32, f16 or bf16; without it the family decides. With `mmproj` the projector is written instead of the
    language model. Raises ExportError with the converter's last words when it fails, or when the file lacks what an
    app needs.
    """
    with files.atomic_path(out) as temporary, tempfile.TemporaryDirectory() as folder:
        overrides = Path(folder) / "metadata.json"
        overrides.write_text(json.dumps(metadata), encoding="utf-8")
        command = [sys.executable, str(STARTER), str(llama.converter), str(checkpoint), "--outfile", str(temporary)]
        command += ["--outtype", outtype or output_type(checkpoint), "--metadata", str(overrides)]
        command += ["--mmproj"] if mmproj else []
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
        if done.returncode or not temporary.is_file():
            raise ExportError(
                f"llama.cpp's converter failed with exit code {done.returncode}: {_last_words(done.stderr)}",
                where=str(checkpoint),
                fix="the base's architecture or tokenizer may be unknown to this llama.cpp; choose a base from the catalogue",
            )
        if not mmproj:
            check(temporary, checkpoint)


def check(gguf: Path, checkpoint: Path) -> None:
    """Raise ExportError unless the GGUF has the checkpoint's chat template, BOS, EOS and special tokens."""
    fields = read_head(gguf).fields
    template = chat_template(checkpoint)
    if template is not None and fields.get("tokenizer.chat_template") != template:
        raise ExportError(
            "the GGUF's chat template differs from the base's",
            where=str(gguf),
            fix="keep the base's own tokenizer files byte for byte",
        )
    faults = _token_faults(fields, checkpoint)
    if faults:
        raise ExportError(
            "the GGUF's tokens differ from the base's:\n  " + "\n  ".join(faults[:10]),
            where=str(gguf),
            fix="mend the base's tokenizer files, or fetch the base again",
        )


def _token_faults(fields: dict[str, Any], checkpoint: Path) -> list[str]:
    faults = []
    for key, name in (("tokenizer.ggml.eos_token_id", "EOS"), ("tokenizer.ggml.bos_token_id", "BOS")):
        expected = token_id(checkpoint, name.lower())
        if expected is not None and fields.get(key) != expected:
            faults.append(f"the {name} is token {fields.get(key)}, the base's is {expected}")
    texts, kinds = fields.get("tokenizer.ggml.tokens", []), fields.get("tokenizer.ggml.token_type", [])
    for entry in added_tokens(checkpoint):
        index, text = entry["id"], entry["content"]
        found, kind = (texts[index], kinds[index]) if index < len(texts) else (None, None)
        if found not in (text, text.replace(_SPACE, " ")):  # llama.cpp keeps an added token's spaces as such
            faults.append(f"token {index} is {found!r}, the base's is {text!r}")
        elif entry.get("special") and kind not in _NOT_TEXT:
            faults.append(
                f"token {index}, {text!r}, is ordinary text in the GGUF (type {kind}) and a token of its own in the base"
            )
    return faults


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
    settings = checkpoint / "tokenizer_config.json"
    if not settings.is_file():
        return None
    token = files.read_json(settings).get(f"{kind}_token")
    text = token.get("content") if isinstance(token, dict) else token
    return next((int(entry["id"]) for entry in added_tokens(checkpoint) if entry["content"] == text), None)


def added_tokens(checkpoint: Path) -> list[dict[str, Any]]:
    """tokenizer.json's added tokens: `id`, `content`, `special`."""
    vocabulary = checkpoint / "tokenizer.json"
    entries: list[dict[str, Any]] = files.read_json(vocabulary).get("added_tokens", []) if vocabulary.is_file() else []
    return entries


def _environment() -> dict[str, str]:
    """The converter must use the gguf-py of its own commit, look nothing up, and say little."""
    kept = {name: value for name, value in os.environ.items() if name != "NO_LOCAL_GGUF"}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _last_words(output: str) -> str:
    lines = [line for line in output.strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"
