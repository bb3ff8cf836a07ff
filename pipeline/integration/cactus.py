"""What the app must be told: the configuration of its Cactus client, and how to put it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.data.tools import load_vocabulary
from pipeline.integration import runtimes

CONFIG = "cactus.config.json"
MAX_TOKENS = 2048  # the app's context


def config(model: Path, mmproj: Path | None) -> dict[str, Any]:
    """The object for cactus.ts. Paths are relative to the app's root, as the app writes them."""
    return {
        "modelPath": app_path(model),
        "mmprojPath": app_path(mmproj) if mmproj else None,
        "maxTokens": MAX_TOKENS,
        "temperature": 0.7,
        "topP": 0.9,
        "toolCallFormat": "bracket",
        "supportedTools": list(load_vocabulary().names),
    }


def write(models_dir: Path, settings: dict[str, Any]) -> Path:
    """Put the configuration beside the model."""
    files.write_json(models_dir / CONFIG, settings)
    return models_dir / CONFIG


def instructions(settings: dict[str, Any], architecture: str) -> str:
    """What a person does to have the app use the model."""
    able = runtimes.loading(architecture)
    refused = [f"  {row.name}: {reason}" for row in runtimes.runtimes() if (reason := row.why_not(architecture))]
    lines = ["Put these lines into cactus.ts:", f'  modelPath: "{settings["modelPath"]}"']
    if settings["mmprojPath"]:
        lines.append(f'  mmprojPath: "{settings["mmprojPath"]}"')
    else:
        lines.append("  mmprojPath: null")
    lines += [
        f"or load the whole of {CONFIG}. The model calls {', '.join(settings['supportedTools'])} as [tool: arguments].",
        "The app's executor wants dice in `roll`; toExecutor in dm-tools.js turns our calls into its own.",
        f"Loads in: {', '.join(able) or 'no runtime that is known'}.",
        *(["Does not load in:", *refused] if refused else []),
    ]
    return "\n".join(lines)


def app_path(path: Path) -> str:
    """`./assets/models/x.gguf`; an absolute path stays as it is."""
    return path.as_posix() if path.is_absolute() else f"./{path.as_posix().removeprefix('./')}"
