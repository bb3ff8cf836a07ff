"""A base's GGUF file with its weights: the head is read by `pipeline.gguf_file`, de-quantising is the `gguf` package's."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.gguf_file import Tensor, read_head


class GgufFile:
    """An open GGUF file: `metadata` by key, `tensors` in the file's order with shapes rows first, as in torch. Close
    it, or use it in a `with`. Raises PipelineError where it is no GGUF file."""

    def __init__(self, path: Path) -> None:
        head = read_head(path)
        self.metadata: dict[str, Any] = head.fields
        self.tensors: list[Tensor] = [replace(tensor, shape=tensor.shape[::-1]) for tensor in head.tensors]
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._bytes.close()

    def arrays(self) -> Iterator[tuple[Tensor, Any]]:
        """Each tensor with its values: a float32 numpy array of `shape`."""
        import gguf
        import numpy as np

        for tensor in self.tensors:
            kind = gguf.GGMLQuantizationType(tensor.kind)
            block, size = gguf.GGML_QUANT_SIZES[kind]
            count = int(np.prod(tensor.shape))
            raw = np.frombuffer(self._bytes, dtype=np.uint8, count=count // block * size, offset=tensor.offset).copy()
            rows = raw.reshape(*tensor.shape[:-1], -1)
            yield tensor, gguf.dequantize(rows, kind).reshape(tensor.shape)
