"""Is this folder a checkpoint that can go all the way? Asked from small files and headers, before anything dear.

The config is looked at first (it is all that is needed to refuse most bases, before their weights are downloaded),
then the tokenizer, then the weights' headers. No tensor is loaded, and no code from the checkpoint is ever run.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.bases import catalog, safetensors_file
from pipeline.errors import BaseModelError

# What the journey has been taken through with, in the tests, per architecture: merge rules, parity, templates.
PROVEN = {
    "LlamaForCausalLM": "llama",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
    "Gemma3nForConditionalGeneration": "gemma3n",
    "Gemma3nForCausalLM": "gemma3n",
}
# Known to the pinned llama.cpp converter and close enough to the above to be let through; parity has the last word.
LIKELY = {
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Gemma2ForCausalLM": "gemma2",
    "SmolLM3ForCausalLM": "smollm3",
    "Phi3ForCausalLM": "phi3",
    "Olmo2ForCausalLM": "olmo2",
    "GraniteForCausalLM": "granite",
}
_GEMMAS = ("gemma2", "gemma3", "gemma3n")
_WANTED = re.compile(
    r"(model[-.\w]*\.safetensors(\.index\.json)?|(config|generation_config|tokenizer|tokenizer_config|added_tokens"
    r"|special_tokens_map|vocab|preprocessor_config|processor_config|chat_template)\.json|tokenizer\.model|merges\.txt"
    r"|chat_template\.jinja)"
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")


@dataclass(frozen=True)
class Checkpoint:
    """What was learnt from a folder: its config, and the names of its files in use."""

    config: dict[str, Any]
    names: tuple[str, ...]

    @property
    def architecture(self) -> str:
        return str(self.config.get("model_type", "unknown"))

    @property
    def multimodal(self) -> bool:
        return "vision_config" in self.config or "audio_config" in self.config


def wanted(name: str) -> bool:
    """Whether a file of a repository or folder is used at all; everything else is left where it is."""
    return _WANTED.fullmatch(name) is not None


def require_safetensors(names: list[str], where: str) -> None:
    """Raise BaseModelError unless there are weights in safetensors; pickled ones can run code when they are read."""
    if any(name.endswith(".safetensors") and wanted(name) for name in names):
        return
    pickles = [name for name in names if name.endswith(_PICKLES)]
    ggufs = [name for name in names if name.endswith(".gguf")]
    found = f"only pickled weights ({', '.join(pickles[:3])})" if pickles else "no model*.safetensors file"
    if ggufs:
        found = f"only GGUF files ({', '.join(ggufs[:3])}), which are made for playing, not for training"
    raise BaseModelError(
        f"the base has {found}",
        where=where,
        fix="pickled weights can run code and are refused: convert them to safetensors, or use another base: "
        + catalog.alternatives(),
    )


def examine(folder: Path, where: str) -> Checkpoint:
    """Everything about a whole checkpoint in a folder. Raises BaseModelError."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and wanted(path.name))
    config = examine_config(folder, where)
    require_safetensors([path.name for path in folder.iterdir()], where)
    examine_tokenizer(folder, config, where)
    tensors = safetensors_file.examine(folder)
    _require_vocabulary(tensors, config, where)
    return Checkpoint(config, tuple(names))


def examine_config(folder: Path, where: str) -> dict[str, Any]:
    """The config, if it asks for no remote code, is not quantised already, and names a known architecture."""
    config = _read(folder / "config.json", where)
    for name in ("config.json", "tokenizer_config.json"):
        content = _read(folder / name, where) if (folder / name).is_file() else {}
        if content.get("auto_map"):
            raise BaseModelError(
                f"{name} asks for code from the checkpoint to be run (auto_map: {', '.join(content['auto_map'])})",
                where=where,
                fix="remote code is never run; use a base whose architecture the library has: "
                + catalog.alternatives(),
            )
    if method := (config.get("quantization_config") or {}).get("quant_method"):
        raise BaseModelError(
            f"the base's weights are quantised already ({method}), so a trained adapter cannot be merged into them",
            where=where,
            fix="use the 16-bit checkpoint that it was made from",
        )
    architectures = config.get("architectures") or ["none"]
    if architectures[0] not in PROVEN | LIKELY:
        raise BaseModelError(
            f"the base's architecture {architectures[0]} is none that goes all the way to a GGUF here",
            where=where,
            fix=f"known: {', '.join(PROVEN | LIKELY)}; " + catalog.alternatives(),
        )
    return config


def family(config: dict[str, Any]) -> str:
    return (PROVEN | LIKELY)[config["architectures"][0]]


def examine_tokenizer(folder: Path, config: dict[str, Any], where: str) -> None:
    """The family's tokenizer files, a chat template, and no token that the model has no row for."""
    if not (folder / "tokenizer.json").is_file():
        raise BaseModelError(
            "the base has no tokenizer.json (a fast tokenizer with offsets)",
            where=where,
            fix="save it with AutoTokenizer.from_pretrained(...).save_pretrained(...) next to the weights",
        )
    if family(config) in ("gemma2", "gemma3n") and not (folder / "tokenizer.model").is_file():
        raise BaseModelError(
            "the base has no tokenizer.model, without which llama.cpp takes Gemma's tokens for another family's",
            where=where,
            fix="copy tokenizer.model from the original repository into the folder",
        )
    template = chat_template(folder)
    if not template:
        raise BaseModelError(
            "the base has no chat template: it was never tuned for turns of system, user and assistant",
            where=where,
            fix="use the instruction-tuned sister of it, or one of these: " + catalog.alternatives(),
        )
    _require_rows(folder, config, template, where)


def chat_template(folder: Path) -> str | None:
    """The chat template's text from whichever of its three places has it."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8") or None
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = _read(folder / name, name).get("chat_template")
            if template:
                return template if isinstance(template, str) else json.dumps(template)
    return None


def attach_template(folder: Path, config: dict[str, Any]) -> bool:
    """Give a pretrained Gemma the Gemma turn format; True when it was added."""
    from pipeline.bases import templates

    if chat_template(folder) or family(config) not in _GEMMAS or not (folder / "tokenizer.json").is_file():
        return False
    added = _read(folder / "tokenizer.json", str(folder)).get("added_tokens", [])
    if not any(token["content"] == templates.GEMMA_END_OF_TURN for token in added):
        return False
    files.write_text(folder / "chat_template.jinja", templates.GEMMA)
    settings = _read(folder / "tokenizer_config.json", str(folder))
    files.write_json(folder / "tokenizer_config.json", settings | {"eos_token": templates.GEMMA_END_OF_TURN})
    return True


def vocabulary_size(config: dict[str, Any]) -> int:
    """Rows of the embedding: the text model's, where the config nests one (0 where it leaves the default)."""
    return int((config.get("text_config") or config).get("vocab_size", 0))


def _require_rows(folder: Path, config: dict[str, Any], template: str, where: str) -> None:
    """Every token needs a row in the embedding, save special ones that text can never bring up: Gemma 3's text-only
    checkpoints list the picture token, one past the end."""
    rows = vocabulary_size(config)
    content = _read(folder / "tokenizer.json", where)
    vocabulary = content.get("model", {}).get("vocab", {})
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((v[0], i) for i, v in enumerate(vocabulary))
    added = {token["content"]: token for token in content.get("added_tokens", [])}
    ids = dict(pairs) | {name: token["id"] for name, token in added.items()}
    homeless = {name: index for name, index in ids.items() if index >= rows > 0}
    faults = {
        name: index
        for name, index in homeless.items()
        if len(homeless) > 8 or name not in added or not added[name].get("special") or name in template
    }
    if faults:
        name, index = next(iter(faults.items()))
        raise BaseModelError(
            f"the tokenizer has {len(faults)} tokens that the model has no row for ({name!r} is {index}, of {rows} rows)",
            where=where,
            fix="tokenizer and weights belong to different models: take both from the same repository",
        )


def _require_vocabulary(tensors: dict[str, tuple[int, ...]], config: dict[str, Any], where: str) -> None:
    rows = vocabulary_size(config)
    for name, shape in tensors.items():
        if name.endswith(".embed_tokens.weight") and rows and shape[0] != rows:
            raise BaseModelError(
                f"{name} has {shape[0]} rows, config.json says vocab_size {rows}",
                where=where,
                fix="weights and config belong to different models: take both from the same repository",
            )


def _read(path: Path, where: str) -> dict[str, Any]:
    try:
        content = files.read_json(path)
    except FileNotFoundError as error:
        raise BaseModelError(f"the base has no {path.name}", where=where, fix="give a whole checkpoint") from error
    except ValueError as error:
        raise BaseModelError(
            f"the base's {path.name} is not readable JSON: {error}", where=where, fix="fetch that file again"
        ) from error
    if not isinstance(content, dict):
        raise BaseModelError(f"the base's {path.name} holds no JSON object", where=where, fix="fetch that file again")
    return content
