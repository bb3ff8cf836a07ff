"""The exact size of every catalogued base in every quantisation, by llama-quantize's own dry run on files of their shape.

    python bench/sizes.py

No weights are needed: a GGUF with the base's tensor names and shapes and nothing but a hole after its head is written,
and llama-quantize says what it would make of each tensor. The tokenizer in a real file's head is added where one was
measured: SmolLM2's 1.8 MB, and Gemma's 6.5 MB, which the embedded Gemma 3 270M file has more than its tensors. Qwen's
is not (about 6 MB more).
"""

from __future__ import annotations

import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.artifacts import LlamaCpp  # noqa: E402
from pipeline.bases import catalog  # noqa: E402
from pipeline.bases.memory import Shape  # noqa: E402
from pipeline.environment import llama_cpp  # noqa: E402
from pipeline.export.quantize import KINDS, predict_sizes  # noqa: E402

F32, F16 = 0, 1
NAMES = {"llama": "llama", "qwen3": "qwen3", "gemma3_text": "gemma3", "gemma3": "gemma3", "gemma3n": "gemma3n"}
# Bytes of a real file's head, by vocabulary; Gemma 3n's few hundred more entries change the fourth digit.
HEADS = {49_152: 1_785_568, 262_144: 6_525_120, 262_208: 6_525_120, 262_400: 6_525_120}
# Vision towers with their projectors in f16, from the published shapes; Gemma 3n's audio tower is left out.
PROJECTORS = {"gemma-3-4b-it": 419_816_304, "gemma-3n-e2b-it": 298_587_456, "gemma-3n-e4b-it": 298_587_456}


def main() -> None:
    llama = llama_cpp.find(ROOT / "artifacts" / "cache")
    if llama is None:
        sys.exit("llama.cpp is not built yet: run `pnpm run doctor --fix`, or train once")
    print(table(llama))


def table(llama: LlamaCpp) -> str:
    """A Markdown table in MB (10^6 bytes), one line a base."""
    lines = ["| base | " + " | ".join(("f16", *KINDS)) + " | projector f16 |", "|---|" + "---:|" * (len(KINDS) + 2)]
    for name, entry in catalog.entries().items():
        sizes = sizes_of(entry.architecture, entry.shape, llama)
        projector = f"{PROJECTORS[name] * 2 / 1e6:,.0f}" if name in PROJECTORS else "–"
        lines.append(
            f"| {name} | " + " | ".join(f"{sizes[kind] / 1e6:,.1f}" for kind in ("f16", *KINDS)) + f" | {projector} |"
        )
    return "\n".join(lines)


def sizes_of(architecture: str, shape: Shape, llama: LlamaCpp) -> dict[str, int]:
    """Bytes of the tensors by quantisation, `f16` included; a known tokenizer's head comes on top."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ghost.gguf"
        head = ghost(path, NAMES[architecture], shape)
        sizes = {"f16": path.stat().st_size} | predict_sizes(path, llama)
    return {kind: size - head + HEADS.get(shape.vocab, 0) for kind, size in sizes.items()}


def tensors(architecture: str, shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """GGUF names and shapes, the row length first."""
    hidden, wide, queries, keys = (
        shape.hidden,
        shape.intermediate,
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
    )
    gemma = architecture.startswith("gemma")
    yield "token_embd.weight", (hidden, shape.vocab)
    yield "output_norm.weight", (hidden,)
    if shape.per_layer_width:
        everywhere = shape.per_layer_width * shape.layers
        yield "per_layer_token_embd.weight", (everywhere, shape.vocab)  # the converter pads it to the whole vocabulary
        yield "per_layer_model_proj.weight", (hidden, everywhere)
        yield "per_layer_proj_norm.weight", (shape.per_layer_width,)
        yield "altup_proj.weight", (hidden, hidden, shape.altup_inputs - 1)
        yield "altup_unembd_proj.weight", (hidden, hidden, shape.altup_inputs - 1)
    for layer in range(shape.layers):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm": (hidden,),
            "attn_q": (hidden, queries),
            "attn_k": (hidden, keys),
            "attn_v": (hidden, keys),
            "attn_output": (queries, hidden),
            "ffn_norm": (hidden,),
            "ffn_gate": (hidden, wide),
            "ffn_up": (hidden, wide),
            "ffn_down": (wide, hidden),
        }
        if architecture != "llama":
            block |= {"attn_q_norm": (shape.head_dim,), "attn_k_norm": (shape.head_dim,)}
        if gemma:
            block |= {"post_attention_norm": (hidden,), "post_ffw_norm": (hidden,)}
        if shape.per_layer_width:
            block |= _gemma3n(shape)
        yield from ((f"blk.{layer}.{name}.weight", dimensions) for name, dimensions in block.items())


def _gemma3n(shape: Shape) -> dict[str, tuple[int, ...]]:
    hidden, inputs, width, rank = shape.hidden, shape.altup_inputs, shape.per_layer_width, shape.laurel_rank
    return {
        "inp_gate": (hidden, width),
        "proj": (width, hidden),
        "post_norm": (hidden,),
        "altup_correct_coef": (inputs, inputs),
        "altup_correct_scale": (hidden,),
        "altup_predict_coef": (inputs, inputs * inputs),
        "altup_router": (hidden, inputs),
        "altup_router_norm": (hidden,),
        "laurel_l": (hidden, rank),
        "laurel_r": (rank, hidden),
        "laurel_post_norm": (hidden,),
    }


def ghost(path: Path, architecture: str, shape: Shape) -> int:
    """Write a GGUF of these shapes without a byte of weights on the disk; returns the length of its head."""
    numbers = {
        "block_count": shape.layers,
        "context_length": 2048,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.intermediate,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.sliding_window": 512,
        "attention.shared_kv_layers": 10 if shape.layers == 30 else 15,
        "altup.num_inputs": shape.altup_inputs or 1,
        "altup.active_idx": 0,
        "embedding_length_per_layer_input": shape.per_layer_width or 1,
        "vocab_size": shape.vocab,
    }
    fields = _text("general.architecture") + struct.pack("<I", 8) + _text(architecture)
    for name, value in numbers.items():
        fields += _text(f"{architecture}.{name}") + struct.pack("<II", 4, value)
    fields += _text(f"{architecture}.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-6)
    infos, offset = b"", 0
    found = list(tensors(architecture, shape))
    for name, dimensions in found:
        kind = F16 if len(dimensions) > 1 and not name.endswith(("_coef.weight", "altup_router.weight")) else F32
        infos += _text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
        offset += -(-_product(dimensions) * (2 if kind == F16 else 4) // 32) * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(found), len(numbers) + 2) + fields + infos
    head += bytes(-len(head) % 32)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + offset)
    return len(head)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _product(numbers: Any) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total


if __name__ == "__main__":
    main()
