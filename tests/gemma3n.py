"""A tiny random Gemma 3n: the real architecture with the numbers that llama.cpp fixes, calm enough to compare closely.

Fixed in llama.cpp: 30 layers of which the last 10 share their keys and values, 4 altup inputs, laurel rank 64, 256
per-layer embeddings, activation sparsity in the first 10 layers. Two things make a careless fixture useless: with plain
random weights attention is a knife edge (scale 1.0 and unit norms: q_norm is scaled down here), and llama.cpp takes the
n−1 standard deviation for the sparsity cut-off where transformers takes the n one (invisible from 4096 columns on).
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, Gemma3nForCausalLM, Gemma3nTextConfig

LAYERS, SHARED, VOCABULARY, WINDOW = 30, 10, 1024, 32
TEMPLATE = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '

' %}{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for message in rest %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '
' + (first if loop.first else '') + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model
' }}{% endif %}"""
SYMBOLS = ["<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "\n", "\n\n"]
TEXT = Path(__file__).resolve().parent.parent / "training_data"


def tokenizer(folder: Path) -> None:
    """A SentencePiece model trained on the project's own scenarios, set up as Gemma's, with tokenizer.json beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line for path in sorted(TEXT.glob("combat/*.md"))[:12] for line in path.read_text("utf-8").splitlines()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        bos_piece="<bos>",
        eos_piece="<eos>",
        user_defined_symbols=SYMBOLS,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = special | {"tokenizer_class": "GemmaTokenizer", "additional_special_tokens": SYMBOLS[1:5]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    fast = AutoTokenizer.from_pretrained(folder)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    # As published: without this list, which transformers 5 no longer writes, the converter takes them for plain text.
    added = {token: {"content": text, "special": True} for text, token in fast.get_added_vocab().items()}
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    decoder = {"added_tokens_decoder": {str(token): entry for token, entry in added.items()}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | decoder))
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 2, "eos_token_id": [1, 6], "pad_token_id": 0})
    )


def text_config() -> Gemma3nTextConfig:
    return Gemma3nTextConfig(
        vocab_size=VOCABULARY,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size=64,
        intermediate_size=4096,
        num_hidden_layers=LAYERS,
        num_kv_shared_layers=SHARED,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=WINDOW,
        max_position_embeddings=1024,
    )


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Every tensor of the language model as published: with the unused keys and values of the layers that share them."""
    torch.manual_seed(seed)
    model = Gemma3nForCausalLM(text_config())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_norm" in name:
                weight.mul_(0.1)
            elif weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))
            elif weight.dim() == 2 and "altup" not in name:
                spread = 0.1 if "embed_tokens" in name else weight.shape[1] ** -0.5
                weight.copy_(spread * torch.randn_like(weight))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    for layer in range(LAYERS - SHARED, LAYERS):
        for name in ("k_proj.weight", "v_proj.weight", "k_norm.weight"):
            alike = tensors[f"model.layers.0.self_attn.{name}"]
            tensors[f"model.layers.{layer}.self_attn.{name}"] = 0.1 * torch.randn_like(alike)
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}


def text_only(folder: Path) -> Path:
    tokenizer(folder)
    save_file(weights(), folder / "model.safetensors", {"format": "pt"})
    config = text_config().to_dict() | {"architectures": ["Gemma3nForCausalLM"], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def multimodal(folder: Path) -> Path:
    """The same language model inside a checkpoint with vision and audio towers, named as the hub's is."""
    text_only(folder)
    torch.manual_seed(1)
    towers = {name: torch.randn(shape) * max(1, math.prod(shape[1:])) ** -0.5 for name, shape in _towers(16).items()}
    language = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in weights().items()}
    tensors = language | {name: tensor.to(torch.bfloat16) for name, tensor in towers.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    audio = {
        "model_type": "gemma3n_audio",
        "hidden_size": 64,
        "conf_num_hidden_layers": 1,
        "conf_num_attention_heads": 4,
    }
    config = {
        "architectures": ["Gemma3nForConditionalGeneration"],
        "model_type": "gemma3n",
        "dtype": "bfloat16",
        "text_config": text_config().to_dict(),
        "vision_config": {"model_type": "gemma3n_vision", "architecture": "mobilenetv5_300m_enc", "hidden_size": 64},
        "audio_config": audio | {"input_feat_size": 128, "vocab_size": 16, "vocab_offset": VOCABULARY - 16},
        "eos_token_id": [1, 6],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    processor = {
        "size": {"height": 512, "width": 512},
        "image_seq_length": 256,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def _towers(width: int) -> dict[str, tuple[int, ...]]:
    """As wide at its end as the language model (llama.cpp wants it so): a MobileNetV5 of one or two blocks a stage in place of 84, every kind of block among them."""
    tower = "model.vision_tower.timm_model."
    shapes: dict[str, tuple[int, ...]] = {
        "conv_stem.conv.weight": (width, 3, 3, 3),
        "conv_stem.conv.bias": (width,),
        "conv_stem.bn.weight": (width,),
        "blocks.0.0.conv_exp.weight": (width, width, 3, 3),
        "blocks.0.0.bn1.weight": (width,),
        "blocks.0.0.conv_pwl.weight": (width, width, 1, 1),
        "blocks.0.0.bn2.weight": (width,),
        "msfa.ffn.pw_exp.conv.weight": (2 * width, 2 * width, 1, 1),
        "msfa.ffn.pw_exp.bn.weight": (2 * width,),
        "msfa.ffn.pw_proj.conv.weight": (64, 2 * width, 1, 1),
        "msfa.ffn.pw_proj.bn.weight": (64,),
        "msfa.norm.weight": (64,),
    }
    for stage in (1, 2, 3):
        block = f"blocks.{stage}.0."
        for part in ("dw_start", "dw_mid"):
            shapes |= {f"{block}{part}.conv.weight": (width, 1, 5, 5), f"{block}{part}.bn.weight": (width,)}
        for part in ("pw_exp", "pw_proj"):
            shapes |= {f"{block}{part}.conv.weight": (width, width, 1, 1), f"{block}{part}.bn.weight": (width,)}
        shapes[f"{block}layer_scale.gamma"] = (width,)
    for stage in (2, 3):
        block = f"blocks.{stage}.1."
        shapes |= {f"{block}norm.weight": (width,), f"{block}layer_scale.gamma": (width,)}
        heads = 12 if stage == 2 else 16
        head = 64 if stage == 2 else 96
        shapes |= {f"{block}attn.query.proj.weight": (heads * head, width, 1, 1)}
        shapes |= {f"{block}attn.output.proj.weight": (width, heads * head, 1, 1)}
        for part in ("key", "value"):
            shapes[f"{block}attn.{part}.proj.weight"] = (head, width, 1, 1)
            if stage == 2:
                shapes[f"{block}attn.{part}.down_conv.weight"] = (width, 1, 3, 3)
                shapes[f"{block}attn.{part}.norm.weight"] = (width,)
    embedder = {
        "model.embed_vision.embedding.weight": (16, 64),
        "model.embed_vision.hard_embedding_norm.weight": (64,),
        "model.embed_vision.soft_embedding_norm.weight": (64,),
        "model.embed_vision.embedding_projection.weight": (64, 64),
    }
    hearing = {
        "model.audio_tower.subsample_conv_projection.conv_0.conv.weight": (8, 1, 3, 3),
        "model.audio_tower.conformer.0.attention.attn.q_proj.weight": (64, 64),
        "model.embed_audio.embedding_projection.weight": (64, 64),
    }
    return {tower + name: shape for name, shape in shapes.items()} | embedder | hearing
