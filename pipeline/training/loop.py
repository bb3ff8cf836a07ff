"""The training stage: a dataset and a base model in, an adapter out."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline import files
from pipeline.artifacts import Adapter, BaseModel, Dataset
from pipeline.config import TrainingConfig
from pipeline.progress import Stage
from pipeline.training import adapter, checkpoint, distributed, frozen, fused, interrupt, native, plan, shards
from pipeline.training.adapter import Precision
from pipeline.training.checkpoint import Journal, Standing
from pipeline.training.plan import Plan
from pipeline.training.trainer import ForgeTrainer, Session
from pipeline.training.work import Work, plan_work


def train(
    dataset: Dataset,
    base: BaseModel,
    config: TrainingConfig,
    *,
    seed: int,
    threads: int,
    out: Path,
    stage: Stage,
    start: Path | None = None,
    kernels: Path | None = None,
) -> Adapter:
    """Train, or go on where a killed run stopped. `out` gets metrics.jsonl, checkpoints/ and adapter/.

    `start` is the adapter folder of an earlier run that this one goes on from, `kernels` the compiled library for bf16 on
    a CPU. The same inputs give the same adapter bytes on a CPU, whether interrupted or not. Raises DataError,
    BaseModelError, MachineError or TrainingError; KeyboardInterrupt passes through after a checkpoint.
    """
    trainer = fit(dataset, base, config, seed=seed, threads=threads, out=out, stage=stage, start=start, kernels=kernels)
    return finish(trainer, out)


def fit(
    dataset: Dataset,
    base: BaseModel,
    config: TrainingConfig,
    *,
    seed: int,
    threads: int,
    out: Path,
    stage: Stage,
    start: Path | None = None,
    kernels: Path | None = None,
    interrupted: Callable[[], bool] | None = None,
) -> ForgeTrainer:
    """Take every step. Where several processes train, each calls this with a folder of its own, and `interrupted`
    stands for Ctrl-C."""
    from transformers import AutoTokenizer

    out.mkdir(parents=True, exist_ok=True)
    if threads:
        torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    start = distributed.bring(start, out / "start")
    work = plan_work(tokenizer, dataset, base, config, seed, start)
    device = adapter.pick_device()
    precision = adapter.pick_precision(device)
    native.load(kernels if (device.type, precision.dtype) == ("cpu", torch.bfloat16) else None)
    stage.note(f"{len(work.steps)} steps, {work.tokens:,} tokens on {device.type}; {precision.reason}")
    if config.deterministic:
        stage.note(adapter.be_deterministic(device))
    layout = _memory_plan(base, config, work, device, precision, out)
    rate = plan.pick_learning_rate(config, base)
    stage.note(f"{layout.reason}; peak learning rate {rate:g}")
    model = build(base, config, layout, precision, seed, start)
    trainer, resume = _trainer(model, tokenizer, work, config, layout, rate, seed=seed, out=out, stage=stage)
    with interrupt.deferred() if interrupted is None else contextlib.nullcontext(interrupted) as asked:
        trainer.session.interrupted = asked
        _run(trainer, resume)
    return trainer


def build(
    base: BaseModel, config: TrainingConfig, layout: Plan, precision: Precision, seed: int, start: Path | None
) -> Any:
    """The model to train: seeded before anything random is drawn."""
    torch.manual_seed(seed)
    if layout.method == "full":
        model = adapter.unfreeze(adapter.load_base(base, torch.float32))
    else:
        model = adapter.load_base(base, precision.dtype, four_bit=layout.method == "qlora")
        model = adapter.attach_lora(model, config.lora, seed, base.name)
    if start:
        adapter.restore(model, start)
    if _is_sharded(config):
        return shards.shard(model)
    fused.install(model)
    return model


def _is_sharded(config: TrainingConfig) -> bool:
    return config.distributed == "fsdp" and distributed.size() > 1


def _memory_plan(
    base: BaseModel, config: TrainingConfig, work: Work, device: torch.device, precision: Precision, out: Path
) -> Plan:
    lengths = [family.tokens for step in work.steps for family in step.families]
    if device.type == "cuda":
        available, resident = torch.cuda.mem_get_info(device)[0], torch.cuda.memory_allocated(device)
    else:
        available, resident = plan.free_memory() // distributed.local_size(), plan.resident_memory()
    made = plan.make(
        base,
        config,
        device=device.type,
        width=precision.dtype.itemsize,
        longest=max(lengths + [family.tokens for family in work.held_out]),
        fullest=max(step.tokens for step in work.steps),
        available=available,
        resident=resident,
        steps=len(work.steps),
        shards=distributed.size() if _is_sharded(config) else 1,
        repeated=_repeated(base, config, work),
        compiled=native.loaded() is not None,
    )
    return _agreed(made, work.key, out)


def _agreed(made: Plan, key: str, out: Path) -> Plan:
    """Rank 0's plan on every rank, also where rank 0 remembers one of an earlier start: only it has the file."""
    kept: Plan = distributed.agree(plan.remember(out / "plan.json", key, made) if distributed.rank() == 0 else None)
    return kept


def _repeated(base: BaseModel, config: TrainingConfig, work: Work) -> int:
    """Tokens whose states below the adapter are worth keeping: those of a lone process that sees them again."""
    if config.lora.depth == 1.0 or distributed.size() > 1 or not frozen.knows(base.architecture):
        return 0
    return frozen.repeated_tokens(work.steps)


def _trainer(
    model: Any,
    tokenizer: Any,
    work: Work,
    config: TrainingConfig,
    layout: Plan,
    rate: float,
    *,
    seed: int,
    out: Path,
    stage: Stage,
) -> tuple[ForgeTrainer, Path | None]:
    import datasets

    journal = Journal(out / "metrics.jsonl")
    found = checkpoint.newest(out / "checkpoints", work.key)
    if distributed.size() > 1:
        found = _resume_together(found, journal, out)
    folder, standing = found if found else (None, Standing(work.key, 0))
    journal.rewind(standing.step)
    if folder:
        stage.note(f"going on from step {standing.step} of {len(work.steps)}")
    session = Session(
        steps=work.steps,
        held_out=work.held_out,
        evaluate_at=_evaluations(len(work.steps), config.evaluations if work.held_out else 0),
        save_every=config.checkpoint_interval,
        patience=config.early_stopping_patience,
        seed=seed,
        row_tokens=layout.row_tokens,
        warmup=min(config.warmup_steps, max(1, len(work.steps) // 4)),
        schedule=config.schedule,
        folder=out,
        stage=stage,
        journal=journal,
        standing=standing,
        keep_frozen=layout.keep_frozen,
    )
    trainer = (distributed.CrewTrainer if distributed.size() > 1 else ForgeTrainer)(
        session=session,
        model=model,
        args=_arguments(config, layout, rate, len(work.steps), seed, out),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict(
            {"input_ids": [[0]], "labels": [[0]]}
        ),  # TRL wants one; ours are steps
    )
    return trainer, folder


def _resume_together(found: tuple[Path, Standing] | None, journal: Journal, out: Path) -> tuple[Path, Standing] | None:
    """Rank 0's checkpoint and journal, on every rank."""
    folder, standing = found if found else (None, None)
    folder, standing = distributed.bring(folder, out / "checkpoint"), distributed.agree(standing)
    lines = distributed.agree(journal.path.read_text(encoding="utf-8") if journal.path.exists() else "")
    if distributed.rank():
        files.write_text(journal.path, lines)
    return (folder, standing) if folder and standing else None


def _evaluations(steps: int, count: int) -> frozenset[int]:
    return frozenset(max(1, round(steps * number / count)) for number in range(1, count + 1))


def _arguments(config: TrainingConfig, layout: Plan, rate: float, steps: int, seed: int, out: Path) -> Any:
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.gradient_clip,
        optim="adamw_torch_fused",
        adam_beta1=config.adam_betas[0],
        adam_beta2=config.adam_betas[1],
        seed=seed,
        use_cpu=adapter.pick_device().type == "cpu",
        bf16=False,
        gradient_checkpointing=layout.recompute,
        gradient_checkpointing_kwargs={"use_reentrant": False} if layout.recompute else None,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
    )


def _run(trainer: ForgeTrainer, resume: Path | None) -> None:
    if trainer.session.standing.stopped:
        return
    gc.collect()
    gc.freeze()  # the tokens of a whole corpus stay: nobody need walk through them in every collection
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except interrupt.BetweenRows:
        step = trainer.session.standing.step
        if step and trainer.state.global_step == step:
            trainer.save_checkpoint()
            trainer.session.stage.note(f"interrupted; the state after step {step} is kept")
        raise
    except KeyboardInterrupt:
        trainer.session.stage.note("interrupted in the middle of a step; the last checkpoint is kept")
        raise
    finally:
        gc.unfreeze()


def finish(trainer: ForgeTrainer, out: Path) -> Adapter:
    """Take the best step's adapter (by held-out loss; the last where nothing was held out) out of its
    checkpoint: whole tensors from full fine-tuning, without adapter_config.json."""
    session = trainer.session
    standing = session.standing
    best = checkpoint.folder_of(session.checkpoints, standing.best_step or standing.step)
    folder = out / "adapter"
    with files.atomic_path(folder) as temporary:
        adapter.copy(best, temporary)
    _record_memory(trainer, out)
    held_out = standing.best_loss if standing.best_loss is not None else float("nan")
    session.stage.summary = f"loss {session.journal.recent_loss():.3f}, held-out loss {held_out:.3f}"
    return Adapter(
        path=folder,
        sha256=adapter.sha256_of(folder),
        steps=standing.best_step or standing.step,
        final_loss=session.journal.recent_loss(),
        held_out_loss=held_out,
        tokens=int(session.journal.total("tokens")),
        seconds=session.journal.total("seconds"),
    )


def _record_memory(trainer: ForgeTrainer, out: Path) -> None:
    """Put the measured peak beside the predicted one."""
    device = trainer.args.device
    measured = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else plan.peak_memory()
    files.write_json(out / "plan.json", files.read_json(out / "plan.json") | {"measured_peak": measured})
