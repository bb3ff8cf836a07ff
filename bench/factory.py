"""One training by LLaMA-Factory in its own interpreter: `PYTHON bench/factory.py ORDER.json`.

The order holds tokens and labels (`rows`), LLaMA-Factory's own settings (`settings`), the number of threads and the
clock. It goes through LLaMA-Factory's public door (`run_exp` with a tokenised data set); what is printed last is the
time of the training alone, in seconds, and the process's peak memory in bytes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any


def settings(base: Path, config: Any, batch: int, accumulation: int, folder: Path) -> dict[str, Any]:
    """LLaMA-Factory's settings for a training of ours; what is not said here stays as it comes."""
    return {
        "model_name_or_path": str(base), "stage": "sft", "do_train": True, "dataset": "bench", "template": "empty",
        "tokenized_path": str(folder / "rows"), "output_dir": str(folder / "adapter"), "finetuning_type": "lora",
        "lora_rank": config.lora.rank, "lora_alpha": config.lora.alpha, "lora_target": "all", "cutoff_len": 2048,
        "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
        "learning_rate": config.learning_rate, "lr_scheduler_type": "cosine", "warmup_steps": 1, "num_train_epochs": 1,
        "bf16": True, "use_cpu": True, "seed": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip


def train(python: Path, order: dict[str, Any], at: Path) -> dict[str, float]:
    """`seconds` and `peak` of a training by that interpreter."""
    at.write_text(json.dumps(order), encoding="utf-8")
    finished = subprocess.run([str(python), __file__, str(at)], capture_output=True, text=True, check=False)
    found = [line for line in finished.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        sys.exit(f"LLaMA-Factory failed:\n{finished.stderr[-3000:]}")
    numbers: dict[str, float] = json.loads(found[-1].removeprefix("RESULT "))
    return numbers


def main(order: Path) -> None:
    # LLaMA-Factory imports torchaudio, whose wheels want CUDA's libraries beside a torch without them; no sound is trained on.
    sys.modules["torchaudio"] = module_from_spec(ModuleSpec("torchaudio", None))
    import torch
    from datasets import Dataset, DatasetDict
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    given = json.loads(order.read_text(encoding="utf-8"))
    torch.set_num_threads(given["threads"])
    rows = given["rows"] | {"attention_mask": [[1] * len(ids) for ids in given["rows"]["input_ids"]]}
    rows |= {name: [None] * len(rows["labels"]) for name in ("images", "videos", "audios")}
    DatasetDict({"train": Dataset.from_dict(rows)}).save_to_disk(given["settings"]["tokenized_path"])
    now = time.process_time if given["clock"] == "cpu" else time.monotonic
    times: list[float] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            times.append(now())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            times.append(now())

    run_exp(given["settings"], [Watch()])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print("RESULT " + json.dumps({"seconds": times[-1] - times[0], "peak": peak}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
