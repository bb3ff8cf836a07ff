"""f16 GGUF → quantised GGUF, within the size a phone can hold."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from pipeline import files
from pipeline.artifacts import LlamaCpp
from pipeline.errors import ExportError
from pipeline.gguf_file import read_head

KINDS = ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")  # from the smallest file to the largest
# Values in a block and bytes of a block, of the types that these kinds are mixed from (ggml.h).
_BLOCKS = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q2_K": (256, 84),
    "q3_K": (256, 110),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
    "q8_0": (32, 34),
    "q4_K": (256, 144),
    "q5_K": (256, 176),
    "q6_K": (256, 210),
}
_MATRIX_KINDS = ("Q4_K_M", "Q5_K_M", "Q6_K", "auto")  # Q8_0 rounds each block by itself: no weight matters more
_LINE = re.compile(r"\]\s+(\S+)\s+- \[([\d, ]+)\], type =\s+(\w+), size = .*?(?:\((\w+)\))?$", re.MULTILINE)


def quantize(
    f16: Path, out: Path, kind: str, llama: LlamaCpp, threads: int, max_bytes: float, imatrix: Path | None = None
) -> None:
    """Write `out` in quantisation `kind`. Raises ExportError when it fails or the file is larger than `max_bytes`."""
    files.require_free_space(out.parent, f16.stat().st_size, f"the {kind} file")
    with files.atomic_path(out) as temporary:
        # The matrix's path is written into the file: run beside it, so that only its name is.
        folder = imatrix.parent if imatrix else f16.parent
        command = ["--imatrix", imatrix.name] if imatrix else []
        command += [str(f16.resolve()), str(temporary.resolve()), kind, str(threads)]
        done = _run(llama, command, folder)
        if done.returncode or not temporary.is_file():
            words = (done.stderr or done.stdout).strip().splitlines()
            raise ExportError(
                f"llama-quantize failed with exit code {done.returncode}: {words[-1] if words else 'it said nothing'}",
                where=str(f16),
                fix="run it again; if it fails the same way, choose another --quant",
            )
        size = temporary.stat().st_size
        if size > max_bytes:
            raise too_large(kind, size, max_bytes, predict_sizes(f16, llama))


def takes_matrix(kind: str) -> bool:
    """Whether an importance matrix changes a file of this kind."""
    return kind in _MATRIX_KINDS


def too_large(kind: str, size: int, max_bytes: float, sizes: dict[str, int]) -> ExportError:
    """What is too large, by how much, and which ways out there are."""
    table = ", ".join(f"{name} {files.human_size(number)}" for name, number in sizes.items())
    fitting = [name for name, number in sizes.items() if number <= max_bytes]
    way = f"choose --quant {fitting[-1]}" if fitting else "no quantisation of this base fits: choose a smaller --base"
    return ExportError(
        f"the {kind} file has {files.human_size(size)}, more than the {files.human_size(max_bytes)} allowed ({table})",
        where="export.max_size_gb",
        fix=f"{way}, or raise --max-size",
    )


def predict_sizes(f16: Path, llama: LlamaCpp, kinds: tuple[str, ...] = KINDS) -> dict[str, int]:
    """The exact size in bytes that each quantisation of this file would have, by llama-quantize's own dry run."""
    head = read_head(f16)
    start = min(tensor.offset for tensor in head.tensors)
    sizes = {}
    for kind in kinds:
        done = _run(llama, ["--dry-run", str(f16.resolve()), "nothing", kind], f16.parent)
        lines = _LINE.findall(done.stdout + done.stderr)
        if done.returncode or len(lines) != len(head.tensors):
            raise ExportError(
                f"llama-quantize told the size of {len(lines)} of {len(head.tensors)} tensors",
                where=str(f16),
                fix="this llama.cpp words its dry run differently: pipeline/export/quantize.py must follow",
            )
        sizes[kind] = start + sum(_bytes(shape, new or old) for _, shape, old, new in lines)
    return sizes


def _bytes(shape: str, kind: str) -> int:
    columns, *rest = (int(number) for number in shape.split(","))
    values, size = _BLOCKS[kind]
    total = columns // values * size
    for number in rest:
        total *= number
    return -(-total // 32) * 32  # every tensor begins at a multiple of 32


def _run(llama: LlamaCpp, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(llama.tool("llama-quantize").resolve()), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=os.environ | {"LC_ALL": "C"}
    )
