"""f16 GGUF → quantised GGUF, within the size a phone can hold."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipeline import files
from pipeline.artifacts import LlamaCpp
from pipeline.errors import ExportError


def quantize(
    f16: Path, out: Path, kind: str, llama: LlamaCpp, threads: int, max_bytes: float, imatrix: Path | None = None
) -> None:
    """Write `out` in quantisation `kind`. Raises ExportError when it fails or the file is larger than `max_bytes`."""
    files.require_free_space(out.parent, f16.stat().st_size, f"the {kind} file")
    with files.atomic_path(out) as temporary:
        command = [str(llama.tool("llama-quantize"))] + (["--imatrix", str(imatrix)] if imatrix else [])
        command += [str(f16), str(temporary), kind, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not temporary.is_file():
            words = (done.stderr or done.stdout).strip().splitlines()
            raise ExportError(
                f"llama-quantize failed with exit code {done.returncode}: {words[-1] if words else 'it said nothing'}",
                where=str(f16),
                fix="run it again; if it fails the same way, choose another --quant",
            )
        size = temporary.stat().st_size
        if size > max_bytes:
            raise ExportError(
                f"the {kind} file has {files.human_size(size)}, more than the {files.human_size(max_bytes)} allowed",
                where="export.max_size_gb",
                fix="choose a smaller --quant or a smaller --base, or raise --max-size",
            )
