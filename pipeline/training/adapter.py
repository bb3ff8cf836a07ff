"""The model that is trained: a frozen base in the machine's best precision, and LoRA on its language layers."""

from __future__ import annotations

import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import files
from pipeline.artifacts import BaseModel
from pipeline.config import LoraConfig
from pipeline.errors import BaseModelError, MachineError, TrainingError
from pipeline.language_model import load
from pipeline.training import attention, kernels, shards

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PROJECTIONS = re.compile(r"\.(self_attn|attention|attn|mlp|feed_forward|block_sparse_moe)\.")
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_ATTENTION = re.compile(r"\.(self_attn|attention|attn)\.")


@dataclass(frozen=True)
class Precision:
    """What the frozen weights and the products are computed in, and why."""

    dtype: torch.dtype
    reason: str


def pick_device() -> torch.device:
    """The GPU that PyTorch reaches, unless DM_FORGE_DEVICE=cpu; else the CPU."""
    if os.environ.get("DM_FORGE_DEVICE") == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def pick_precision(device: torch.device, cpu_features: set[str] | None = None) -> Precision:
    """bf16 where the machine multiplies it natively, else fp32. Never fp16: Gemma overflows in it."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, "bf16: this GPU multiplies it natively")
        return Precision(torch.float32, "fp32: this GPU has no bf16")
    if device.type == "mps":
        return Precision(torch.float32, "fp32: the precision every Metal kernel has")
    features = _cpu_features() if cpu_features is None else cpu_features
    for feature in ("amx_bf16", "avx512_bf16"):
        if feature in features:
            return Precision(torch.bfloat16, f"bf16: this processor has {feature}")
    return Precision(torch.float32, "fp32: this processor has neither amx_bf16 nor avx512_bf16")


def be_deterministic(device: torch.device) -> str:
    """Let CUDA compute the same bits each time; returns what that means on this device."""
    if device.type != "cuda":
        return f"deterministic: nothing to change, training on {device.type} has no switch for it"
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True)
    return "deterministic: slower kernels that give the same bits each time"


def _cpu_features() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(flags.group(1).split()) if flags else set()


def load_base(base: BaseModel, dtype: torch.dtype, *, four_bit: bool = False) -> Any:
    """The base's language model from its safetensors, with packed attention. Raises BaseModelError."""
    options: dict[str, Any] = {"quantization_config": _four_bit(dtype)} if four_bit else {}
    try:
        model, missing = load(base.path, dtype=dtype, attn_implementation=attention.register(), **options)
    except (ValueError, KeyError) as error:  # an architecture that this transformers does not know
        raise BaseModelError(
            f"transformers cannot load this base: {error}",
            where=str(base.path / "config.json"),
            fix="use a base from the catalogue",
        ) from error
    if missing:
        raise BaseModelError(
            f"the base lacks {len(missing)} tensors: {', '.join(missing[:5])}",
            where=str(base.path),
            fix="fetch the base again; this transformers may not know its names",
        )
    model.config.use_cache = False
    return model


def _four_bit(dtype: torch.dtype) -> Any:
    try:
        import bitsandbytes  # noqa: F401  CUDA only, in the CUDA lock
        from transformers import BitsAndBytesConfig
    except ImportError as error:
        raise MachineError(
            "QLoRA needs bitsandbytes, which is not installed",
            where="training.method: qlora",
            fix="use training.method: lora",
        ) from error
    if pick_device().type != "cuda":
        raise MachineError("QLoRA needs a CUDA GPU", where="training.method: qlora", fix="use training.method: lora")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def lora_targets(model: Any, config: LoraConfig) -> list[str]:
    """Full names of the linear layers that get LoRA: those inside the attention and MLP blocks of the language model's
    upper layers. Below them nothing is differentiated.

    Vision and audio towers, embeddings (Gemma 3n's per-layer ones too), routers and the head stay as they are.
    """
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    wanted = _ATTENTION if config.targets == "attention" else _PROJECTIONS
    layers = int(decoder.config.num_hidden_layers)
    lowest = layers - math.ceil(layers * config.depth)
    names = [
        f"{prefix}.{name}"
        for name, module in decoder.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (layer := _LAYER.search(f".{name}"))
        and int(layer[1]) >= lowest
        and wanted.search(f".{name}.")
    ]
    if not names:
        raise TrainingError(
            f"{type(model).__name__} has no linear layer that LoRA could be put on", fix="use a base from the catalogue"
        )
    return names


def attach_lora(model: Any, config: LoraConfig, seed: int, base_name: str) -> Any:
    """The model with LoRA in fp32 (B zero, A drawn from `seed`); computes through kernels.LoraLinear where it can."""
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model

    torch.manual_seed(seed)  # before the adapter is built: the Trainer seeds too late for it
    settings = PeftLora(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_pattern(lora_targets(model, config)),
        task_type="CAUSAL_LM",
    )
    model.name_or_path = base_name  # PEFT writes it into the adapter; a path of this machine has no place there
    peft = get_peft_model(model, settings, autocast_adapter_dtype=True)
    kernels.install_lora(peft)
    return peft


def unfreeze(model: Any) -> Any:
    """Full fine-tuning of the language model: its layers and norms; embeddings, head and towers stay as they are."""
    model.requires_grad_(False)
    decoder = model.get_decoder()
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_("embed" not in name)
    return model


def _pattern(names: list[str]) -> str:
    """One expression for all names, those that differ in their layer alone folded: the same text every time."""
    layers: dict[tuple[str, str], list[str]] = {}
    for name in names:
        before, layer, after = _LAYER.split(name)
        layers.setdefault((before, after), []).append(layer)
    return "|".join(
        f"{re.escape(before)}\\.layers\\.(?:{'|'.join(numbers)})\\.{re.escape(after)}"
        for (before, after), numbers in sorted(layers.items())
    )


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """What training changes, by its name in the saved file, in a fixed order."""
    named = {name.replace(".default.weight", ".weight"): p for name, p in model.named_parameters() if p.requires_grad}
    return dict(sorted(named.items()))


def weights(model: Any) -> dict[str, torch.Tensor]:
    """What training changes, whole and on the CPU. Where the model is divided, every process must call it."""
    return {name: shards.whole(tensor.detach()).cpu().contiguous() for name, tensor in trainable(model).items()}


def save(model: Any, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the adapter in PEFT's form into a new folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    settings = getattr(model, "peft_config", None)
    if settings:
        files.write_json(folder / CONFIG, _plain(settings["default"].to_dict()))


def copy(source: Path, folder: Path) -> None:
    """An adapter's files alone, from a folder that may hold more."""
    folder.mkdir(parents=True)
    for name in (WEIGHTS, CONFIG):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def sha256_of(folder: Path) -> str:
    return files.sha256_file(folder / WEIGHTS)


def restore(model: Any, folder: Path) -> None:
    """Put saved weights back. Raises TrainingError when they are another model's."""
    from safetensors.torch import load_file

    saved = load_file(folder / WEIGHTS)
    current = trainable(model)
    if {name: saved[name].shape for name in saved} != {name: current[name].shape for name in current}:
        raise TrainingError(
            "the saved weights are another model's", where=str(folder), fix="remove the run's training folder"
        )
    with torch.no_grad():
        for name, parameter in current.items():
            parameter.copy_(shards.like(saved[name], parameter))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(getattr(value, "value", value))
