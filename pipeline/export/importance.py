"""Which weights matter for *our* conversations: llama.cpp's importance matrix, from the training part alone."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from pipeline import files
from pipeline.artifacts import Dataset, LlamaCpp
from pipeline.data.chat import render_text
from pipeline.data.dataset import read_conversations
from pipeline.errors import ExportError

_CHUNK = 512  # tokens


def compute(
    f16: Path, dataset: Dataset, checkpoint: Path, out: Path, llama: LlamaCpp, threads: int, chunks: int
) -> None:
    """Write the matrix to `out`, from `chunks` times 512 tokens of training conversations. Raises ExportError.

    Real scenarios come before composed drills. Held-out conversations are never read: what chooses the quantised
    weights must not have seen what they are measured on.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "conversations.txt").write_text(text(dataset, checkpoint, chunks), encoding="utf-8")
        # Names without folders: they are written into the matrix, and from there into the model file.
        command = [str(llama.tool("llama-imatrix").resolve()), "-m", str(f16.resolve()), "-f", "conversations.txt"]
        command += ["-o", "imatrix.gguf", "-c", str(_CHUNK), "--chunks", str(chunks), "--parse-special", "--no-ppl"]
        command += ["-t", str(threads), "-ngl", "0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        made = folder / "imatrix.gguf"
        if done.returncode or not made.is_file():
            words = [line for line in done.stderr.splitlines() if line.strip()]
            raise ExportError(
                f"llama-imatrix failed with exit code {done.returncode}: {words[-1] if words else 'it said nothing'}",
                where=str(f16),
                fix="set export.imatrix_chunks: 0 to do without an importance matrix",
            )
        with files.atomic_path(out) as temporary:
            shutil.copyfile(made, temporary)


def text(dataset: Dataset, checkpoint: Path, chunks: int) -> str:
    """Training conversations through the base's own template, one after another, a little more than is needed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    training = [item for item in read_conversations(dataset.conversations) if item.split == "train"]
    training.sort(key=lambda item: item.kind != "scenario")
    parts: list[str] = []
    length = 0
    for conversation in training:
        parts.append(render_text(tokenizer, conversation.messages))
        length += len(tokenizer(parts[-1], add_special_tokens=False)["input_ids"])
        if length > (chunks + 1) * _CHUNK:
            break
    return "".join(parts)
