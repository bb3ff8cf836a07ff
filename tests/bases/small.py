"""Tiny checkpoints, GGUF files and wheels, written byte by byte: no model library is needed to make them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from pipeline.bases.catalog import Embedded, Entry, Licence, Wheel, find

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 4}
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {f"t{i}": i for i in range(6)}, "merges": []},
    "added_tokens": [{"id": 6, "content": "<end>", "special": True}],
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<end>{% endfor %}"


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    header, data = {}, b""
    for name, values in tensors.items():
        raw = values.astype(np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def weights(rows: int = 8, size: int = 4) -> bytes:
    random = np.random.default_rng(0)
    return safetensors(
        {
            "model.embed_tokens.weight": random.normal(size=(rows, size)),
            "model.layers.0.mlp.up_proj.weight": random.normal(size=(5000, size)),
        }
    )


def checkpoint() -> dict[str, bytes]:
    """File contents by name: a checkpoint that passes every check."""
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": json.dumps(TOKENIZER).encode(),
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": TEMPLATE.encode(),
        "model.safetensors": weights(),
    }


def sharded() -> dict[str, bytes]:
    one = safetensors({"model.embed_tokens.weight": np.zeros((8, 4))})
    two = safetensors({"model.layers.0.mlp.up_proj.weight": np.ones((16, 4))})
    names = {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}
    names["model.layers.0.mlp.up_proj.weight"] = "model-00002-of-00002.safetensors"
    whole = {name: content for name, content in checkpoint().items() if name != "model.safetensors"}
    return whole | {
        "model-00001-of-00002.safetensors": one,
        "model-00002-of-00002.safetensors": two,
        "model.safetensors.index.json": json.dumps({"weight_map": names}).encode(),
    }


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def gguf(path: Path, architecture: str, seed: int = 0) -> Path:
    """A two-layer random GGUF of the real architecture, half of its matrices in Q8_0."""
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    random = np.random.default_rng(seed)
    width, wide, heads, kv_heads, head = 64, 96, 4, 2, 16
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    if architecture == "gemma3":
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_sliding_window(32)
    tokens = _vocabulary(writer, architecture)

    def matrix(name: str, rows: int, columns: int, packed: bool = True) -> None:
        values = random.normal(size=(rows, columns)).astype(np.float32)
        kind = GGMLQuantizationType.Q8_0 if packed else GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", quantize(values, kind), raw_dtype=kind)

    def norm(name: str, size: int = width) -> None:
        writer.add_tensor(f"{name}.weight", (1 + random.normal(size=size) / 8).astype(np.float32))

    matrix("token_embd", tokens, width)
    norm("output_norm")
    for layer in range(2):
        block = f"blk.{layer}"
        for name in ("attn_norm", "ffn_norm"):
            norm(f"{block}.{name}")
        if architecture == "gemma3":
            norm(f"{block}.post_attention_norm")
            norm(f"{block}.post_ffw_norm")
            norm(f"{block}.attn_q_norm", head)
            norm(f"{block}.attn_k_norm", head)
        matrix(f"{block}.attn_q", heads * head, width)
        matrix(f"{block}.attn_k", kv_heads * head, width, packed=False)
        matrix(f"{block}.attn_v", kv_heads * head, width)
        matrix(f"{block}.attn_output", width, heads * head)
        matrix(f"{block}.ffn_gate", wide, width)
        matrix(f"{block}.ffn_up", wide, width)
        matrix(f"{block}.ffn_down", width, wide)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _vocabulary(writer: object, architecture: str) -> int:
    if architecture == "llama":
        tokens = ["<s>", "</s>", *(chr(c) for c in range(33, 127)), "Ġ", "he", "ll", "hell", "hello"]
        kinds = [3, 3, *[1] * (len(tokens) - 2)]
        writer.add_tokenizer_model("gpt2")
        writer.add_token_merges(["h e", "l l", "he ll", "hell o"])
        writer.add_chat_template(TEMPLATE)
    else:
        tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "\n", "  "]
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        tokens += ["he", "▁he", "ll", "hell", "▁hell", "▁hello", *"▁abcdefghijklmnopqrstuvwxyz"]
        kinds = [3, 3, 3, 3, 3, 3, 4, 4, *[6] * 256, *[1] * 33]
        writer.add_tokenizer_model("llama")
        scores = [-1000.0] * 8 + [0.0] * 256 + [-float(i) for i in range(33)]
        writer.add_token_scores(scores)
        writer.add_unk_token_id(3)
        writer.add_pad_token_id(0)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(0 if architecture == "llama" else 2)
    writer.add_eos_token_id(1)
    return len(tokens)


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    """An installable wheel named as pip wants it."""
    package, version = path.name.split("-")[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    info = f"{package}-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def embedded_base(folder: Path, parts: int = 2) -> Entry:
    """A catalogue entry whose tiny GGUF lies, cut in parts, in wheels under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    source = gguf(folder / "whole.gguf", "llama").read_bytes()
    cut = -(-len(source) // parts)
    pinned = []
    for index in range(parts):
        content = source[index * cut : (index + 1) * cut]
        path = wheel(folder / f"tiny_part{index}-1.0-py3-none-any.whl", {f"part{index}": content})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        pinned.append(Wheel(package=f"tiny-part{index}", version="1.0", sha256=digest, member=f"part{index}"))
    packed = Embedded(wheels=tuple(pinned), gguf_bytes=len(source), gguf_sha256=hashlib.sha256(source).hexdigest())
    open_terms = Licence(name="Apache-2.0", url="https://example.org", must_accept=None)
    return find("smollm2-135m").model_copy(update={"name": "tiny", "embedded": packed, "licence_terms": open_terms})
