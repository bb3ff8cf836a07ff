"""How much memory a base needs, computed from its shape: to train by method, and to run by quantisation.

**To run** = the GGUF file + the KV cache of the app's context (2048 tokens, 16 bit) + working buffers. The file's size
is counted matrix by matrix with the types llama-quantize chooses: the token embedding, which is also the output, at
Q6_K; half of the layers' `attn_v` and `ffn_down` at Q6_K; everything else at the type's own width; and the next larger
block type where a row is no multiple of 256 (SmolLM2-135M, 270M's 640). Against real files: SmolLM2-135M Q4_K_M
105.5 MB, Gemma 3 270M Q4_K_M 253.1 MB, both within 3 % (tested).

**To train** = frozen weights in bf16 (QLoRA: 4-bit linear layers, the embeddings stay bf16) + 16 bytes for every trained
parameter (fp32 value, gradient and two Adam moments) + activations of one 2048-token micro-batch with checkpointing +
logits of the supervised positions + the libraries. A lower bound to choose a base by, not a promise: the plan that
training makes counts the batch it really uses. All results are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

Method = Literal["lora", "qlora", "full"]
Quant = Literal["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]
METHODS: tuple[Method, ...] = ("lora", "qlora", "full")
QUANTS: tuple[Quant, ...] = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")

LORA_RANK = 32
TRAINING_TOKENS = 2048
APP_CONTEXT = 2048
_TRAINED_BYTES = 16
_NF4_BYTES = 0.516  # 4 bits and a double-quantised scale for every 64 values
_LOGIT_ROWS = 512  # supervised positions whose logits are held at once, value and gradient in fp32
_LIBRARIES = 700_000_000
_RUN_BUFFERS = 100_000_000
_BITS = {"Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "Q8_0": 8.5, "F16": 16.0, "Q5_0": 5.5, "Q5_1": 6.0}
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # where a row is no multiple of 256
_PLAIN = {"F16": "F16", "Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q4_K_M": "Q4_K"}


class Shape(BaseModel):
    """A decoder's dimensions, as in its config.json; the last four exist in Gemma 3n only."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    per_layer_width: int = 0
    per_layer_vocab: int = 0
    laurel_rank: int = 0
    altup_inputs: int = 0


@dataclass(frozen=True)
class Matrix:
    """`count` matrices of `rows` × `columns` (outputs × inputs)."""

    name: str
    rows: int
    columns: int
    count: int = 1

    @property
    def size(self) -> int:
        return self.rows * self.columns * self.count


def matrices(shape: Shape) -> list[Matrix]:
    """Every two-dimensional weight of the language model; norms are left out (under 0.1 %)."""
    layers, hidden, wide = shape.layers, shape.hidden, shape.intermediate
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    found = [
        Matrix("embedding", shape.vocab, hidden),
        Matrix("attn_q", query, hidden, layers),
        Matrix("attn_k", key, hidden, layers),
        Matrix("attn_v", key, hidden, layers),
        Matrix("attn_output", hidden, query, layers),
        Matrix("ffn_gate", wide, hidden, layers),
        Matrix("ffn_up", wide, hidden, layers),
        Matrix("ffn_down", hidden, wide, layers),
    ]
    if width := shape.per_layer_width:
        found += [
            Matrix("per_layer_embedding", shape.per_layer_vocab, width * layers),
            Matrix("per_layer_model_projection", width * layers, hidden),
            Matrix("per_layer_gate", width, hidden, layers),
            Matrix("per_layer_projection", hidden, width, layers),
            Matrix("laurel_left", shape.laurel_rank, hidden, layers),
            Matrix("laurel_right", hidden, shape.laurel_rank, layers),
            Matrix("altup_projections", hidden, hidden, 2 * (shape.altup_inputs - 1)),
        ]
    return found


def lora_parameters(shape: Shape, rank: int = LORA_RANK) -> int:
    """Trained parameters of LoRA on every linear layer of attention and MLP."""
    return sum(rank * (m.rows + m.columns) * m.count for m in matrices(shape) if m.name.startswith(("attn_", "ffn_")))


def to_train(shape: Shape, parameters: int, tower_parameters: int, method: Method) -> int:
    """Bytes to train with one 2048-token conversation at a time."""
    if method == "full":  # the towers stay frozen in bf16
        weights = (parameters - tower_parameters) * _TRAINED_BYTES + tower_parameters * 2
    else:
        weights = parameters * 2 + lora_parameters(shape) * _TRAINED_BYTES
    if method == "qlora":
        linear = sum(m.size for m in matrices(shape) if m.name.startswith(("attn_", "ffn_")))
        weights -= int(linear * (2 - _NF4_BYTES))
    return weights + _activations(shape) + _LIBRARIES


def _activations(shape: Shape) -> int:
    """One residual a layer kept for checkpointing, one layer recomputed at a time, and the logits."""
    streams = max(1, shape.altup_inputs)
    kept = TRAINING_TOKENS * shape.hidden * shape.layers * 2 * streams
    attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    layer = TRAINING_TOKENS * (8 * shape.hidden * streams + 2 * attention + 6 * shape.intermediate) * 2
    logits = _LOGIT_ROWS * shape.vocab * 4 * 2
    return kept + layer + logits


def gguf_bytes(shape: Shape, quant: Quant) -> int:
    """Size of the language model's GGUF file; the projector of a multimodal base is a file of its own."""
    vocabulary = shape.vocab * 20  # the tokens' text, scores and types
    return int(sum(_bytes(matrix, quant) for matrix in matrices(shape)) + vocabulary)


def to_run(shape: Shape, quant: Quant) -> int:
    """Bytes to play: the file, the KV cache at the app's 2048 tokens, and buffers."""
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * APP_CONTEXT * 2
    return gguf_bytes(shape, quant) + cache + _RUN_BUFFERS


def _bytes(matrix: Matrix, quant: Quant) -> float:
    plain = _bits(_PLAIN[quant], matrix.columns)
    better = _bits("Q6_K", matrix.columns) if quant in ("Q4_K_M", "Q5_K_M") else plain
    if matrix.name in ("embedding", "per_layer_embedding"):
        plain = better
    elif matrix.name in ("attn_v", "ffn_down"):
        plain = (plain + better) / 2
    return matrix.size * plain / 8


def _bits(kind: str, columns: int) -> float:
    return _BITS[kind if columns % 256 == 0 else _FALLBACK.get(kind, kind)]
