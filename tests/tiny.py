"""Tiny random checkpoints of the real architectures, with the embedded base's real tokenizer and chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
COMMON = {
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
EXTRA = {
    "llama": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "qwen3": {"tie_word_embeddings": False},
    # llama.cpp takes every sixth layer for a full one, whatever the config says
    "gemma3_text": {"num_hidden_layers": 6, "sliding_window": 32, "query_pre_attn_scalar": 16},
}
ARCHITECTURES = tuple(EXTRA)


def checkpoint(folder: Path, architecture: str, tokenizer: Path, seed: int = 0, **changes: Any) -> Path:
    """A random bf16 checkpoint, calm enough to compare two implementations closely, and in which every tensor matters."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **(COMMON | EXTRA[architecture] | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _calm(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder / name)
    return folder


def _calm(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_norm" in name:
                weight.mul_(0.1)
            elif weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))
            elif weight.dim() == 2:  # every layer counts, and the logits spread as a trained model's do
                spread = 0.3 if "embed" in name or "lm_head" in name else weight.shape[1] ** -0.5
                weight.copy_(spread * torch.randn_like(weight))


def gemma3_vision(folder: Path, tokenizer: Path, seed: int = 0) -> Path:
    """A tiny Gemma 3 that reads images: 8 × 8 patches pooled to 16 tokens, SentencePiece tokenizer from `tokenizer`."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(seed)
    shutil.copytree(tokenizer, folder)
    text = COMMON | EXTRA["gemma3_text"] | {"vocab_size": 1024, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    size = {"image_size": 112, "patch_size": 14}
    config = Gemma3Config(
        text_config=text,
        vision_config=vision | size,
        mm_tokens_per_image=16,
        boi_token_index=7,
        eoi_token_index=8,
        image_token_index=4,
    )
    model = Gemma3ForConditionalGeneration(config).to(torch.float32)
    _calm(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    saved = load_file(folder / "model.safetensors")
    save_file(
        {_published(name): tensor for name, tensor in saved.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    processor = {
        "size": {"height": 112, "width": 112},
        "image_seq_length": 16,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def _published(name: str) -> str:
    """The hub's name of a tensor: transformers 5 saves the tower under a name that the converter does not find."""
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def adapter(folder: Path, base: Path, rank: int = 4, scale: float = 0.05) -> Path:
    """A random LoRA adapter on every linear layer, saved by PEFT itself."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    tuned = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * scale)
    tuned.save_pretrained(folder)
    return folder
