"""Tiny GGUF files written tensor by tensor: real to llama.cpp, a few hundred kilobytes, made in milliseconds."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HIDDEN, HEADS, LAYERS, MIDDLE = 64, 4, 2, 128


def byte_tokens() -> list[str]:
    """The 256 letters that byte-level BPE writes bytes with."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shown = {byte: chr(byte) for byte in plain}
    for place, byte in enumerate(byte for byte in range(256) if byte not in shown):
        shown[byte] = chr(256 + place)
    return [shown[byte] for byte in range(256)]


def write(path: Path, seed: int = 0, always: str | None = None) -> Path:
    """A random llama with a vocabulary of bytes and ChatML; `always` makes one token win whatever was said before."""
    rng = np.random.default_rng(seed)
    tokens = [*SPECIAL, *byte_tokens()]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(8192)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * 256)
    writer.add_token_merges(["a b"])  # llama.cpp wants the list; this pair is no token, so nothing is ever merged
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in _tensors(rng, tokens, always).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(rng: np.random.Generator, tokens: list[str], always: str | None) -> dict[str, np.ndarray]:
    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    def ones() -> np.ndarray:
        return np.ones(HIDDEN, dtype=np.float32)

    embedding, output = matrix(len(tokens), HIDDEN), matrix(len(tokens), HIDDEN)
    if always is not None:
        # Every state points the same way, and one row of the output points there too.
        embedding[:, 0] = 1000.0
        output[:, 0] = 0.0
        output[tokens.index(always), 0] = 1000.0
    tensors = {"token_embd.weight": embedding, "output_norm.weight": ones(), "output.weight": output}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        tensors |= {block + name + ".weight": ones() for name in ("attn_norm", "ffn_norm")}
        tensors |= {block + f"attn_{name}.weight": matrix(HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
        tensors |= {block + f"ffn_{name}.weight": matrix(MIDDLE, HIDDEN) for name in ("gate", "up")}
        tensors |= {block + "ffn_down.weight": matrix(HIDDEN, MIDDLE)}
    return tensors
