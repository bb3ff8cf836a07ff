"""From a GGUF's vocabulary to the base's tokenizer files, equal to the published ones where ids are concerned.

A GGUF holds every token, its score or the merges, and its type. `gpt2` vocabularies (SmolLM2) are byte-level BPE with
merges; `llama` vocabularies (Gemma) are SentencePiece, for which `tokenizer.model` is rebuilt too: llama.cpp's converter
would otherwise take the tokens for another family's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.bases import templates

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # token types in a GGUF
_BLANK = "▁"


def write(folder: Path, metadata: dict[str, Any]) -> None:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja and, for SentencePiece, tokenizer.model."""
    gemma = metadata["tokenizer.ggml.model"] == "llama"
    _json(folder / "tokenizer.json", _sentencepiece(metadata) if gemma else _byte_level(metadata))
    _json(folder / "tokenizer_config.json", _config(metadata, gemma))
    template = metadata.get("tokenizer.chat_template") or (templates.GEMMA if gemma else "")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if gemma:
        (folder / "tokenizer.model").write_bytes(_model_file(metadata))


def end_of_turn(metadata: dict[str, Any]) -> int:
    """The id that ends the assistant's turn: Gemma's own where we add the template, else the file's EOS."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    if "tokenizer.chat_template" not in metadata and templates.GEMMA_END_OF_TURN in tokens:
        return tokens.index(templates.GEMMA_END_OF_TURN)
    return int(metadata["tokenizer.ggml.eos_token_id"])


def _config(metadata: dict[str, Any], gemma: bool) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos_token_id", "unk_token": "unknown_token_id", "pad_token": "padding_token_id"}
    special = {
        key: tokens[metadata[f"tokenizer.ggml.{field}"]]
        for key, field in names.items()
        if f"tokenizer.ggml.{field}" in metadata
    }
    settings = special | {
        "add_bos_token": gemma,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[end_of_turn(metadata)],
        "model_max_length": metadata[f"{metadata['general.architecture']}.context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if gemma:  # the converter reads from here which pieces are control tokens and which are user-defined
        added = _added(metadata)
        settings["added_tokens_decoder"] = {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        }
    return settings


def _byte_level(metadata: dict[str, Any]) -> dict[str, Any]:
    """SmolLM2's: every digit by itself, then GPT-2's byte-level pieces."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(metadata),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": _bpe(metadata["tokenizer.ggml.tokens"], [m.split(" ", 1) for m in metadata["tokenizer.ggml.merges"]]),
    }


def _sentencepiece(metadata: dict[str, Any]) -> dict[str, Any]:
    """Gemma's: blanks become ▁, unknown characters fall back to bytes, and a BOS opens every text."""
    tokens = _pieces(metadata)
    bos = metadata["tokenizer.ggml.bos_token_id"]
    opening = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
    unknown = tokens[metadata["tokenizer.ggml.unknown_token_id"]]
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B"))
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(metadata),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK},
        "pre_tokenizer": split,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [opening, first],
            "pair": [opening, first, opening, second],
            "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _BLANK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": _bpe(tokens, _merges(tokens, _scores(metadata)))
        | {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
    }


def _bpe(tokens: list[str], merges: list[list[str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": merges,
    }


def _added(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    kinds = metadata["tokenizer.ggml.token_type"]
    return [
        {"id": index, "content": token, **flags, "special": kind == _CONTROL}
        for index, (token, kind) in enumerate(zip(_pieces(metadata), kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _pieces(metadata: dict[str, Any]) -> list[str]:
    """The tokens as SentencePiece spells them; the converter has turned ▁ into blanks in the user-defined ones."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    if metadata["tokenizer.ggml.model"] != "llama":
        return tokens
    kinds = metadata["tokenizer.ggml.token_type"]
    return [
        token.replace(" ", _BLANK) if kind == _USER_DEFINED else token
        for token, kind in zip(tokens, kinds, strict=True)
    ]


def _scores(metadata: dict[str, Any]) -> list[float]:
    """The converter marks added tokens with -1000; in a SentencePiece model they have 0."""
    kinds = metadata["tokenizer.ggml.token_type"]
    return [
        0.0 if kind in (_CONTROL, _USER_DEFINED) else score
        for score, kind in zip(metadata["tokenizer.ggml.scores"], kinds, strict=True)
    ]


def _merges(tokens: list[str], scores: list[float]) -> list[list[str]]:
    """Every way to join two tokens into a third, best score of the third first, long halves before short ones."""
    known = {token: index for index, token in enumerate(tokens)}
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in known and right in known:
                found.append((-score, -len(left), -len(right), left, right))
    found.sort(key=lambda merge: merge[:3])  # stable: equal ranks stay in the vocabulary's order
    return [[left, right] for *_, left, right in found]


def _model_file(metadata: dict[str, Any]) -> bytes:
    """A SentencePiece BPE model of the same pieces."""
    from sentencepiece import sentencepiece_model_pb2 as schema

    unknown = metadata["tokenizer.ggml.unknown_token_id"]
    kind_of = {_CONTROL: 3, _USER_DEFINED: 4, _BYTE: 6}
    model = schema.ModelProto()
    kinds = metadata["tokenizer.ggml.token_type"]
    for index, (piece, score, kind) in enumerate(zip(_pieces(metadata), _scores(metadata), kinds, strict=True)):
        model.pieces.add(piece=piece, score=score, type=2 if index == unknown else kind_of.get(kind, 1))
    trainer = model.trainer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = 2, True, len(kinds)
    trainer.unk_id = unknown
    trainer.bos_id = metadata["tokenizer.ggml.bos_token_id"]
    trainer.eos_id = metadata["tokenizer.ggml.eos_token_id"]
    trainer.pad_id = metadata.get("tokenizer.ggml.padding_token_id", -1)
    tokens = metadata["tokenizer.ggml.tokens"]
    trainer.unk_piece, trainer.bos_piece, trainer.eos_piece = (
        tokens[trainer.unk_id],
        tokens[trainer.bos_id],
        tokens[trainer.eos_id],
    )
    normaliser = model.normalizer_spec
    normaliser.name, normaliser.add_dummy_prefix, normaliser.remove_extra_whitespaces = "identity", False, False
    return bytes(model.SerializeToString(deterministic=True))


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
