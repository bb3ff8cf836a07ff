"""A GGUF becomes a Hugging Face checkpoint: bf16 safetensors, config and tokenizer.

Only what the embedded bases need (llama and gemma3). Written out here because the library's own way reads the file
four times through a slow reader and prints as it goes; the weights are the same, number by number (tested against it).
Equal files give equal bytes: nothing that varies between machines or library versions is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.bases import tokenizer_files
from pipeline.bases.gguf_file import GgufFile
from pipeline.errors import BaseModelError

_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAMES = {
    "llama": _ATTENTION | {"ffn_norm": "post_attention_layernorm"},
    "gemma3": _ATTENTION
    | {
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def dequantise(gguf: Path, folder: Path) -> None:
    """Write model.safetensors, config.json, generation_config.json and the tokenizer's files into `folder`."""
    with GgufFile(gguf) as source:
        metadata = source.metadata
        architecture = metadata.get("general.architecture")
        if architecture not in _LAYER_NAMES:
            raise BaseModelError(
                f"a GGUF of architecture {architecture!r} cannot be unpacked",
                where=str(gguf),
                fix=f"known: {', '.join(_LAYER_NAMES)}; train from a checkpoint in safetensors instead",
            )
        tokenizer_files.write(folder, metadata)
        tied = all(tensor.name != "output.weight" for tensor in source.tensors)
        config = _llama(metadata) if architecture == "llama" else _gemma3(metadata)
        files.write_json(folder / "config.json", config | _common(metadata, tied))
        files.write_json(folder / "generation_config.json", _generation(metadata))
        _weights(source, architecture, folder / "model.safetensors")


def _weights(source: GgufFile, architecture: str, path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    heads = source.metadata[f"{architecture}.attention.head_count"]
    kv_heads = source.metadata[f"{architecture}.attention.head_count_kv"]
    tensors = {}
    for tensor, values in source.arrays():
        name = _hub_name(tensor.name, architecture)
        if architecture == "llama" and ".attn_q." in tensor.name:
            values = _unpermute(values, heads)
        elif architecture == "llama" and ".attn_k." in tensor.name:
            values = _unpermute(values, kv_heads)
        elif architecture == "gemma3" and name.endswith("norm.weight"):
            values = values - 1  # a GGUF holds 1 + weight
        tensors[name] = torch.from_numpy(values).to(torch.bfloat16).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def _unpermute(values: Any, heads: int) -> Any:
    """llama.cpp interleaves the two halves of every rotary pair; back to halves side by side."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _hub_name(name: str, architecture: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _TOP_NAMES:
        return f"{_TOP_NAMES[stem]}.{kind}"
    block, layer, part = (*stem.split("."), "", "")[:3]
    if block != "blk" or part not in _LAYER_NAMES[architecture]:
        raise BaseModelError(f"the GGUF holds a tensor {name!r} that {architecture} does not have", where=name)
    return f"model.layers.{layer}.{_LAYER_NAMES[architecture][part]}.{kind}"


def _common(metadata: dict[str, Any], tied: bool) -> dict[str, Any]:
    kind = metadata["general.architecture"]
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "dtype": "bfloat16",
        "eos_token_id": tokenizer_files.end_of_turn(metadata),
        "hidden_size": metadata[f"{kind}.embedding_length"],
        "intermediate_size": metadata[f"{kind}.feed_forward_length"],
        "max_position_embeddings": metadata[f"{kind}.context_length"],
        "num_attention_heads": metadata[f"{kind}.attention.head_count"],
        "num_hidden_layers": metadata[f"{kind}.block_count"],
        "num_key_value_heads": metadata[f"{kind}.attention.head_count_kv"],
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": _short(metadata[f"{kind}.attention.layer_norm_rms_epsilon"]),
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
    }


def _llama(metadata: dict[str, Any]) -> dict[str, Any]:
    width, heads = metadata["llama.embedding_length"], metadata["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": width // heads,
        "hidden_act": "silu",
        "mlp_bias": False,
        "rope_theta": _short(metadata.get("llama.rope.freq_base", 10000.0)),
    }


def _gemma3(metadata: dict[str, Any]) -> dict[str, Any]:
    """What a GGUF leaves out is the same in every Gemma 3: one global layer in six, local RoPE base 10,000."""
    head, layers = metadata["gemma3.attention.key_length"], metadata["gemma3.block_count"]
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "head_dim": head,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["full_attention" if (n + 1) % 6 == 0 else "sliding_attention" for n in range(layers)],
        "query_pre_attn_scalar": head,
        "rope_local_base_freq": 10000.0,
        "rope_theta": _short(metadata.get("gemma3.rope.freq_base", 1_000_000.0)),
        "sliding_window": metadata["gemma3.attention.sliding_window"],
    }


def _generation(metadata: dict[str, Any]) -> dict[str, Any]:
    ends = {metadata["tokenizer.ggml.eos_token_id"], tokenizer_files.end_of_turn(metadata)}
    return {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": sorted(ends) if len(ends) > 1 else ends.pop(),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }


def _short(value: float) -> float:
    """A float32 as the shortest decimal that means it: 9.999999747378752e-06 was written as 1e-05."""
    import numpy as np

    return float(str(np.float32(value)))
