"""The run's settings: defaults < YAML < flags, merged once, validated once. Unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UsageError

CONFIGS = Path("configs")
Beta = Annotated[float, Field(ge=0, lt=1)]
Quantisation = Literal["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "auto"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    folder: Path = Path("training_data")
    drill_lines: int = Field(100_000, ge=0, description="at most so many drill lines are trained on")
    drill_branches: int = Field(
        6, ge=1, le=64, description="training conversations from drills that begin alike and end differently"
    )
    borrowed_prose: float = Field(
        0.7,
        ge=0,
        le=1,
        description="share of the drills said with other drills' prose, whose calls alone are trained:"
        " a call follows from the player's line",
    )
    scenario_weight: float = Field(
        0.2, gt=0, le=10, description="how often a training scenario is drawn for each time a family of drills is"
    )
    augmentations: int = Field(0, ge=0, le=10, description="augmented twins of each training scenario")
    paraphrases: bool = Field(True, description="augmentation: player's lines in the other words written for them")
    renaming: bool = Field(True, description="augmentation: rename party members, worlds and places")
    dice: bool = Field(True, description="augmentation: re-roll dice within the same outcome band")
    hit_points: bool = Field(True, description="augmentation: vary hit points and levels")


class LoraConfig(Section):
    rank: int = Field(32, ge=1, le=512)
    alpha: int = Field(64, ge=1, le=1024)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    targets: Literal["all-linear", "attention"] = "all-linear"
    depth: float = Field(1.0, gt=0, le=1, description="share of the layers, from the top, that are tuned")


class TrainingConfig(Section):
    method: Literal["auto", "lora", "qlora", "full"] = "auto"
    lora: LoraConfig = LoraConfig()
    learning_rate: float | None = Field(
        None, gt=0, le=1.0, description="peak, per optimiser step; by the base's size when left out"
    )
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(20, ge=0, description="optimiser steps")
    weight_decay: float = Field(0.0, ge=0, le=1.0)
    call_weight: float = Field(
        5.0, ge=1, le=100, description="how much more a token of the choice of a call counts than one of prose"
    )
    gradient_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    adam_betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), description="how slowly Adam forgets the gradients, and their squares"
    )
    batch_tokens: int = Field(4096, ge=64, description="tokens in an effective batch")
    batch_size: int | None = Field(None, ge=1, description="conversations in a batch, instead of batch_tokens")
    epochs: float = Field(1.0, gt=0, le=1000)
    max_tokens: int | None = Field(None, ge=1, description="stop after so many training tokens")
    max_seq_length: int = Field(2048, ge=64, le=131_072, description="tokens; a longer conversation is refused")
    checkpoint_interval: int = Field(25, ge=1, description="optimiser steps between checkpoints")
    early_stopping_patience: int = Field(2, ge=0, description="held-out measurements without progress; 0 never stops")
    evaluations: int = Field(4, ge=1, description="held-out loss measurements over the run")
    evaluation_tokens: int = Field(8192, ge=1, description="about how many held-out tokens a measurement reads")
    deterministic: bool = Field(False, description="CUDA: slower kernels with the same bits each time; a CPU has them")
    distributed: Literal["ddp", "fsdp"] = Field(
        "ddp", description="several processes: the model copied into each, or divided among them"
    )


class ParityConfig(Section):
    conversations: int = Field(6, ge=1, description="held-out conversations compared")
    f16_mean_kl: float = Field(1e-3, gt=0)
    f16_top1: float = Field(0.99, ge=0, le=1)
    quant_mean_kl: float = Field(0.15, gt=0)
    quant_top1: float = Field(0.80, ge=0, le=1)


# What a phone's app should carry, and hold while it plays: 10⁹ bytes. A base of the catalogue may have other limits.
FILE_GB, MEMORY_GB = 2.0, 3.0


class AutoConfig(Section):
    """How `quantization: auto` chooses: by dev conversations, the smallest file that is not worse than f16."""

    conversations: int = Field(40, ge=1, description="dev conversations played by each candidate")
    margin: float = Field(0.02, ge=0, le=1, description="share of the turns that it may lose")


class ExportConfig(Section):
    quantization: Quantisation = Field("Q4_K_M", description="or auto: the smallest that is not worse, by measurement")
    max_size_gb: float | None = Field(
        None, gt=0, description="largest file in GB; left out, the base's own limit: 2, and 4 for Gemma 3n E2B"
    )
    imatrix_chunks: int = Field(
        8, ge=0, description="times 512 training tokens for the importance matrix; 0 does without"
    )
    auto: AutoConfig = AutoConfig()
    parity: ParityConfig = ParityConfig()


class ValidationConfig(Section):
    conversations: int | None = Field(None, ge=1, description="held-out conversations played; all when left out")
    baseline_conversations: int | None = Field(None, ge=1, description="of them, how many the untuned base plays")
    slots: int = Field(16, ge=1, le=64, description="conversations played at once, each by a server of its own")
    context: int = Field(2048, ge=512, description="tokens a conversation may hold")
    max_reply_tokens: int = Field(128, ge=8)
    exact_conversations: int = Field(0, ge=0, description="conversations that the unshrunk f16 file plays too; 0: none")
    free_games: int = Field(2, ge=0, description="games in which the model sees its own replies; 0 plays none")
    grammar_conversations: int = Field(4, ge=0, description="conversations played once more with the grammar")
    perplexity_conversations: int = Field(4, ge=1, description="conversations whose gold replies are scored")
    runtime_check: bool = Field(False, description="have a client that is not ours load the file and play a game")
    phone: bool = Field(True, description="measure memory and speed as the app would run the file")


class GateConfig(Section):
    enabled: bool = True
    min_tool_call_accuracy: float = Field(0.0, ge=0, le=1)
    min_call_turn_accuracy: float = Field(0.0, ge=0, le=1)
    min_no_call_accuracy: float = Field(0.0, ge=0, le=1)
    min_gain_over_base: float = Field(0.05, ge=-1, le=1)
    min_stop_rate: float = Field(0.9, ge=0, le=1)
    not_worse_than_promoted: bool = Field(True, description="refuse a model that is surely worse than the shipped one")
    max_memory_gb: float | None = Field(
        None,
        gt=0,
        description="resident at the largest context measured; left out, the base's own: 3, Gemma 3n E2B 4.5",
    )


class Config(Section):
    base: str = Field("auto", description="catalogue name, hub id, local folder, or auto")
    accept_licences: tuple[str, ...] = Field((), description="licences the user agreed to, such as gemma")
    preset: str = "default"
    seed: int = Field(20250721, ge=0)
    threads: int = Field(0, ge=0, description="CPU threads; 0 takes every core")
    runtime: str | None = Field(
        None, description="the app's runtime, such as cactus@0.2: refused if it cannot load the model"
    )
    output_dir: Path = Path("artifacts/runs")
    cache_dir: Path = Path("artifacts/cache")
    models_dir: Path = Path("assets/models")
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    export: ExportConfig = ExportConfig()
    validation: ValidationConfig = ValidationConfig()
    gate: GateConfig = GateConfig()


def load(path: Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read a YAML file over the defaults and flags over both. Raises UsageError naming every wrong key at once."""
    settings = _read(path)
    _merge(settings, overrides or {})
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise UsageError(
            _explain(error), where=str(path), fix="see pipeline/config.py for every key and its bounds"
        ) from error


def preset_path(name: str) -> Path:
    """`default` is configs/train.yaml; any other preset is configs/<name>.yaml."""
    path = CONFIGS / ("train.yaml" if name == "default" else f"{name}.yaml")
    if not path.is_file():
        known = sorted({"default", *(file.stem for file in CONFIGS.glob("*.yaml"))} - {"train"})
        raise UsageError(f"there is no preset {name!r}", where=str(path), fix=f"use one of: {', '.join(known)}")
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"there is no config file {str(path)!r}", fix="give an existing YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"the config is not readable YAML: {error}", where=str(path), fix="mend the file") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(
            f"the config is a {type(content).__name__}, not a mapping of keys",
            where=str(path),
            fix="write `key: value` lines",
        )
    return content


def _merge(settings: dict[str, Any], overrides: dict[str, Any]) -> None:
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(settings.get(key), dict):
            _merge(settings[key], value)
        else:
            settings[key] = value


def _explain(error: ValidationError) -> str:
    faults = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        value = "" if fault["type"] == "missing" else f" (it is {fault['input']!r})"
        faults.append(f"{key}: {fault['msg'].lower()}{value}")
    return "the config has " + (f"{len(faults)} faults:\n  " if len(faults) > 1 else "a fault: ") + "\n  ".join(faults)
