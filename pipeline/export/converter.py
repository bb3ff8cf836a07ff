"""llama.cpp's own converter, unchanged, in a process of its own: `python converter.py CONVERTER ARGUMENT…`.

It wants transformers for the tokenizer and the configuration alone. While transformers looks for torch, torch is out of
sight: otherwise the first configuration read brings in modelling, accelerate, torch's compiler and sympy, a quarter of
the converter's start and 80 MB. What is written is the same, byte for byte (tests/export/test_convert.py).
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main(converter: str) -> None:
    sys.path[0] = str(Path(converter).parent)  # as if it had been started itself
    _hide_torch_from_transformers()
    runpy.run_path(converter, run_name="__main__")


def _hide_torch_from_transformers() -> None:
    sys.modules["torch"] = None  # type: ignore[assignment]
    from transformers.utils import is_torch_available

    is_torch_available()  # looks now, and remembers
    del sys.modules["torch"]


if __name__ == "__main__":
    del sys.argv[0]
    main(sys.argv[0])
