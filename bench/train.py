"""How fast training is, against TRL's SFTTrainer as it comes: same base, same tokens, same LoRA, arms interleaved.

    python bench/train.py --base artifacts/cache/bases/smollm2-135m --dataset artifacts/runs/<run>/data/dataset.jsonl

With `--llamafactory PYTHON`, the interpreter of a place where LLaMA-Factory is installed, that is one more arm.
Every arm trains in a process of its own, one after another, round after round, so that a busy neighbour slows all of
them alike; the table shows medians over the rounds and the ratio to the best of TRL's arms. Tokens are those of the
conversations trained on, the same for all arms, though we compute what conversations of a family share only once; the
loss weighs all supervised tokens alike, as theirs does, and a shared beginning is supervised once. On a machine that others use
too, take `--threads 1 --clock cpu`: processor time of one thread is hardly touched by neighbours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pipeline  # noqa: E402, F401 - sets how threads wait, for every arm

PER_BATCH = 4  # conversations in a batch of a peer that does not pack
LLAMA_FACTORY = "llama-factory bf16"
ARMS = ("dm-forge", "trl fp32", "trl bf16", "trl bf16 packing", LLAMA_FACTORY)


def main() -> None:
    options = _options()
    if options.arm:
        print("RESULT " + json.dumps(run_arm(options)), flush=True)
        return
    arms = options.arms or [arm for arm in ARMS if arm != LLAMA_FACTORY or options.llamafactory]
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for number in range(options.rounds):
        for arm in arms:
            result = _in_process(arm, options)
            results[arm].append(result)
            print(f"round {number + 1}: {arm}: {result}", file=sys.stderr, flush=True)
    print(table(results, matrix_rate(options)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="a checkpoint in Hugging Face form")
    parser.add_argument("--dataset", type=Path, required=True, help="dataset.jsonl of a run")
    parser.add_argument("--tokens", type=int, default=16_000, help="training tokens of an arm")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="default: all that can run")
    parser.add_argument("--llamafactory", type=Path, metavar="PYTHON", help="an interpreter that has LLaMA-Factory")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_process(arm: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__)), "--arm", arm, "--base", str(options.base)]
    command += ["--dataset", str(options.dataset), "--tokens", str(options.tokens), "--rank", str(options.rank)]
    command += ["--batch-tokens", str(options.batch_tokens), "--threads", str(options.threads)]
    command += ["--clock", options.clock]
    command += ["--llamafactory", str(options.llamafactory)] if options.llamafactory else []
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    for line in finished.stdout.splitlines():
        if line.startswith("RESULT "):
            result: dict[str, float] = json.loads(line.removeprefix("RESULT "))
            return result
    raise SystemExit(f"{arm} failed:\n{finished.stderr[-3000:]}")


def run_arm(options: argparse.Namespace) -> dict[str, float]:
    """Train one arm; speeds in tokens per second of training alone, memory in bytes, loss in nats per token."""
    import torch
    from transformers import AutoTokenizer

    from pipeline.artifacts import BaseModel, Dataset
    from pipeline.config import LoraConfig, TrainingConfig
    from pipeline.training import loop, objective, plan

    torch.set_num_threads(options.threads)
    base = BaseModel("bench", options.base.resolve(), "bench", "", "")
    config = TrainingConfig(
        max_tokens=options.tokens,
        call_weight=1.0,
        learning_rate=5e-4,
        batch_tokens=options.batch_tokens,
        lora=LoraConfig(rank=options.rank, alpha=2 * options.rank),
        epochs=1000,
        warmup_steps=1,
        evaluation_tokens=3000,
        checkpoint_interval=10_000,
    )
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    work = loop.plan_work(tokenizer, Dataset(options.dataset, options.dataset, ""), base, config, 1)
    with tempfile.TemporaryDirectory() as folder:
        if options.arm == "dm-forge":
            seconds, model = _ours(base, config, options, Path(folder))
        elif options.arm == LLAMA_FACTORY:
            seconds, model, peak = _llamafactory(base, work, config, options, Path(folder))
        else:
            seconds, model = _trl(base, tokenizer, work, config, options, Path(folder))
    if options.arm != LLAMA_FACTORY:
        peak = plan.peak_memory()
    objective.install(model)
    _pack_attention(model)
    supervised = sum(step.supervised_tokens for step in work.steps)
    given = sum(len(ids) for ids, _ in _separate(work))
    computed = work.tokens if options.arm == "dm-forge" else given
    return {
        "tokens_per_second": given / seconds,
        "computed_per_second": computed / seconds,
        "supervised_per_second": supervised / seconds,
        "peak_memory": peak,
        "held_out_loss": objective.held_out_loss(model, work.held_out, 2048, torch.device("cpu")),
        "work_per_token": work_per_token(model, supervised / computed),
    }


def _separate(work: Any) -> list[tuple[tuple[int, ...], set[int]]]:
    """Every conversation by itself, as the peers take it: its ids and which positions are supervised; those of a
    family's shared beginning in its first conversation only."""
    return [
        (sample.ids, {target for target in sample.targets if number == 0 or target >= family.stem})
        for step in work.steps
        for family in step.families
        for number, sample in enumerate(family.samples)
    ]


def _ours(base: Any, config: Any, options: argparse.Namespace, folder: Path) -> tuple[float, Any]:
    from pipeline.artifacts import Dataset
    from pipeline.config import Config
    from pipeline.environment import llama_cpp
    from pipeline.progress import Reporter
    from pipeline.training import loop

    built = llama_cpp.find(ROOT / Config().cache_dir)
    if built is None:
        raise SystemExit("the compiled kernels are not built here; `pnpm run train:dev` builds them")
    kept: list[Any] = []
    seconds: list[float] = []
    inner = loop._run

    def timed(trainer: Any, resume: Any) -> None:
        started = _now(options)
        inner(trainer, resume)
        seconds.append(_now(options) - started)
        kept.append(trainer.model)

    loop._run = timed
    loop._evaluations = lambda *_: frozenset()  # the other arms measure nothing while they train either
    data = Dataset(options.dataset, options.dataset, "")
    with Reporter("plain", quiet=True).stage("bench") as stage:
        loop.train(data, base, config, seed=1, threads=options.threads, out=folder, stage=stage, kernels=built.kernels)
    return seconds[0], kept[0]


def _now(options: argparse.Namespace) -> float:
    return time.process_time() if options.clock == "cpu" else time.monotonic()


def _trl(
    base: Any, tokenizer: Any, work: Any, config: Any, options: argparse.Namespace, folder: Path
) -> tuple[float, Any]:
    """SFTTrainer with its own defaults; given are tokens and labels, LoRA's shape, rate, and the batches' size."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    rows = _rows(work)
    arm = options.arm
    packing = arm.endswith("packing")
    per_batch = 1 if packing else PER_BATCH
    settings = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=per_batch,
        gradient_accumulation_steps=max(1, config.batch_tokens // 2048) if packing else _accumulation(work),
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        max_length=2048,
        packing=packing,
        bf16="bf16" in arm,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=1,
    )
    dtype = torch.bfloat16 if "bf16" in arm else torch.float32
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=dtype)
    lora = LoraConfig(
        r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    dataset = Dataset.from_dict(rows)
    trainer = SFTTrainer(
        model=model, args=settings, train_dataset=dataset, processing_class=tokenizer, peft_config=lora
    )
    started = _now(options)
    trainer.train()
    return _now(options) - started, trainer.model


def _rows(work: Any) -> dict[str, list[list[int]]]:
    samples = _separate(work)
    return {
        "input_ids": [list(ids) for ids, _ in samples],
        "labels": [[token if at in wanted else -100 for at, token in enumerate(ids)] for ids, wanted in samples],
    }


def _accumulation(work: Any) -> int:
    """So many batches that a peer's step has as many conversations as ours."""
    return max(1, round(len(_separate(work)) / len(work.steps) / PER_BATCH))


def _llamafactory(
    base: Any, work: Any, config: Any, options: argparse.Namespace, folder: Path
) -> tuple[float, Any, float]:
    """LLaMA-Factory with its own defaults, in its own interpreter; the adapter it saves is read back."""
    import factory
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    settings = factory.settings(base.path, config, PER_BATCH, _accumulation(work), folder)
    order = {"rows": _rows(work), "settings": settings, "threads": options.threads, "clock": options.clock}
    numbers = factory.train(options.llamafactory, order, folder / "order.json")
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.bfloat16)
    return numbers["seconds"], PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True), numbers["peak"]


def _pack_attention(model: Any) -> None:
    from pipeline.training import attention

    model.get_base_model().set_attn_implementation(attention.register())


def work_per_token(model: Any, supervised_share: float) -> float:
    """Arithmetic that training cannot avoid, in FLOPs a token: 4 a frozen weight, 6 a LoRA weight, 4 a head weight of a
    supervised token. Attention's own products are left out."""
    frozen = tuned = 0
    for name, parameter in model.get_base_model().get_decoder().named_parameters():
        if parameter.requires_grad:
            tuned += parameter.numel()
        elif parameter.dim() == 2 and "embed" not in name:
            frozen += parameter.numel()
    head = model.get_output_embeddings().weight.numel()
    return 4 * frozen + 6 * tuned + 4 * head * supervised_share


def matrix_rate(options: argparse.Namespace) -> float:
    """The machine's own bf16 rate in FLOP/s: the best of ten 2048 x 2048 products."""
    import torch

    torch.set_num_threads(options.threads)
    square = torch.randn(2048, 2048).bfloat16()
    times = []
    for _ in range(11):
        started = _now(options)
        square @ square
        times.append(_now(options) - started)
    return float(2 * 2048**3 / min(times[1:]))


def table(results: dict[str, list[dict[str, float]]], rate: float) -> str:
    medians = {
        arm: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for arm, runs in results.items()
    }
    peers = [values["tokens_per_second"] for arm, values in medians.items() if arm.startswith("trl")]
    lines = [
        f"This machine's bf16 matrix rate: {rate / 1e9:.0f} GFLOP/s",
        "",
        "| arm | tokens/s | supervised tokens/s | times TRL's best | share of matrix rate | peak memory, GB | held-out loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, values in medians.items():
        speed = values["tokens_per_second"]
        ratio = f"{speed / max(peers):.2f}" if peers else "-"
        share = values["work_per_token"] * values["computed_per_second"] / rate
        lines.append(
            f"| {arm} | {speed:.0f} | {values['supervised_per_second']:.0f} | {ratio} | {share:.0%} "
            f"| {values['peak_memory'] / 1e9:.2f} | {values['held_out_loss']:.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
