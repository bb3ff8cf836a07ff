"""TRL's SFTTrainer with our batches, our loss and our checkpoints.

The Trainer sees one item per optimiser step. Inside it we split the step into rows that fit the memory, so running
out of memory never loses more than the step under way and never changes the effective batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback
from trl import SFTTrainer

from pipeline import files
from pipeline.errors import TrainingError
from pipeline.progress import Stage
from pipeline.training import adapter, batches, checkpoint, interrupt, memory, objective
from pipeline.training.batches import Family, MicroBatch, Step
from pipeline.training.checkpoint import Journal, Standing
from pipeline.training.frozen import FrozenLayers

OPTIMIZER, SCHEDULER, _STATE = "optimizer.pt", "scheduler.pt", "trainer_state.json"
_REMEMBERED = 100  # steps; among so many are easy ones (calls alone) and hard ones (an author's prose)
_TRIM_EVERY = 5  # steps; more often costs time, which once in five does not (docs/performance.md)
_SMALLEST_ROW = 32  # tokens; below it, halving the row no longer saves memory


@dataclass
class Session:
    """What a run's trainer needs besides TRL's arguments. `interrupted` is asked between rows."""

    steps: Sequence[Step]
    held_out: Sequence[Family]
    evaluate_at: frozenset[int]
    save_every: int
    patience: int
    seed: int
    row_tokens: int
    warmup: int
    schedule: str
    folder: Path
    stage: Stage
    journal: Journal
    standing: Standing
    keep_frozen: bool = False  # what the layers below the adapter make of a family is kept for the next epochs
    interrupted: Callable[[], bool] = field(default=lambda: False)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


class ForgeTrainer(SFTTrainer):  # type: ignore[misc]
    def __init__(self, *, session: Session, **options: Any) -> None:
        super().__init__(**options)
        self.session = session
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self._row_tokens = session.standing.row_tokens or session.row_tokens
        self._started = time.monotonic()
        bare = self.accelerator.unwrap_model(self.model)
        objective.install(bare)
        left = session.steps[session.standing.step :]
        self._frozen = FrozenLayers(bare, left) if session.keep_frozen else None

    # -- what the Trainer asks for -------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.session.steps, batch_size=1, collate_fn=lambda items: items[0])

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        def factor(done: int) -> float:
            return rate_factor(done + 1, num_training_steps, self.session.warmup, self.session.schedule)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def training_step(self, model: Any, step: Step, num_items_in_batch: Any = None) -> torch.Tensor:
        """The step's loss, the mean over its supervised tokens by their shares, gradients accumulated; [] fp32."""
        self._started = time.monotonic()
        if not model.training:
            model.train()
        while True:
            torch.manual_seed(_step_seed(self.session.seed, step.number))
            try:
                return self._accumulate(model, step)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                self._halve_rows(step, error)
            model.zero_grad(set_to_none=True)
            memory.release()

    def _accumulate(self, model: Any, step: Step) -> torch.Tensor:
        rows = self._rows(step.families)
        total = torch.zeros((), dtype=torch.float32, device=self.args.device)
        for number, (row, weight) in enumerate(rows, start=1):
            self._obey_interrupt()
            batch = batches.micro_batch(row).to(self.args.device)
            with nullcontext() if number == len(rows) else self.accelerator.no_sync(model):
                loss = self._row_loss(model, row, batch) * weight / step.shares
                self.accelerator.backward(loss)
            total += loss.detach()
        if self._frozen:
            self._frozen.forget(step)
        total = self._mean(total)
        if not math.isfinite(float(total)):
            raise _diverged(step, f"the loss became {float(total)}")
        return total

    def _row_loss(self, model: Any, row: Sequence[Family], batch: MicroBatch) -> torch.Tensor:
        if not self._frozen:
            return objective.row_loss(model, batch)
        states = self._frozen.states(row)
        with self._frozen.skipped():
            return objective.row_loss(model, batch, states)

    # -- where training by several processes differs (distributed.py) ----------------------------------------------

    def _rows(self, drawn: Sequence[Family]) -> list[tuple[Sequence[Family], int]]:
        """The rows that this process computes, and each one's weight in the loss."""
        return [(row, 1) for row in batches.pack(drawn, self._row_tokens)]

    def _mean(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def _obey_interrupt(self) -> None:
        if self.session.interrupted():
            raise interrupt.BetweenRows

    def _held_out(self) -> float:
        loss: float = objective.held_out_loss(self.model, self.session.held_out, self._row_tokens, self.args.device)
        return loss

    def _halve_rows(self, step: Step, error: BaseException) -> None:
        """Smaller rows from here on; the effective batch stays."""
        longest = max(family.tokens for family in step.families)
        used = min(self._row_tokens, step.tokens)
        if used <= max(_SMALLEST_ROW, longest):
            raise TrainingError(
                f"one conversation of {longest} tokens does not fit into memory",
                where=f"step {step.number}",
                fix="close other programs, lower training.max_seq_length or training.lora.rank, or use a smaller base",
            ) from error
        self._row_tokens = max(used // 2, _SMALLEST_ROW)
        self.session.standing = replace(self.session.standing, row_tokens=self._row_tokens)
        self.session.stage.note(
            f"out of memory at step {step.number}: rows of {used} tokens become {self._row_tokens}; the effective batch stays"
        )

    # -- after each step -----------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, model: Any, *_: Any, learning_rate: float | None = None, **__: Any
    ) -> None:
        number = self.state.global_step
        if number == self.session.standing.step:
            return  # the Trainer calls once more at the end of an epoch
        step = self.session.steps[number - 1]
        loss = float(tr_loss)
        tr_loss.zero_()
        self._guard(step, loss, grad_norm)
        standing = replace(self.session.standing, step=number)
        entry = self._entry(step, loss, grad_norm, learning_rate)
        if number in self.session.evaluate_at:
            entry["held_out_loss"] = self._held_out()
            standing = self._judged(standing, entry["held_out_loss"])
        self.session.journal.append(entry)
        self.session.standing = standing  # only now: a step that is not measured and written down is not done
        self._report(entry)
        if number % _TRIM_EVERY == 0 and self.args.device.type == "cpu":
            memory.trim()
        last = number == len(self.session.steps) or bool(self.session.standing.stopped)
        if last or "held_out_loss" in entry or number % self.session.save_every == 0:
            self.save_checkpoint()
        self.control.should_training_stop = bool(self.session.standing.stopped)

    def _guard(self, step: Step, loss: float, grad_norm: Any) -> None:
        if grad_norm is not None and not math.isfinite(float(grad_norm)):
            raise _diverged(step, f"the gradient became {float(grad_norm)}")
        before = [entry["loss"] for entry in self.session.journal.entries[-_REMEMBERED:]]
        if len(before) >= 5 and loss > 2 * max(before) + 2:
            raise _diverged(step, f"the loss leapt to {loss:.3g} (highest of the last steps: {max(before):.3g})")

    def _entry(self, step: Step, loss: float, grad_norm: Any, learning_rate: float | None) -> dict[str, Any]:
        return {
            "step": step.number,
            "loss": loss,
            "learning_rate": learning_rate,
            "gradient_norm": None if grad_norm is None else float(grad_norm),
            "tokens": step.tokens,
            "supervised_tokens": step.supervised_tokens,
            "seconds": round(time.monotonic() - self._started, 3),
            "memory": memory.held(self.args.device),
        }

    def _judged(self, standing: Standing, loss: float) -> Standing:
        """The standing after a held-out measurement: the best so far, and whether to stop."""
        standing = standing.measured(loss)
        if self.session.patience and standing.without_progress >= self.session.patience:
            reason = f"held-out loss has not fallen in {standing.without_progress} measurements"
            standing = replace(standing, stopped=reason)
            self.session.stage.note(
                f"stopping early at step {standing.step}: {reason}; the best was step {standing.best_step}"
            )
        return standing

    def _report(self, entry: dict[str, Any]) -> None:
        shown: dict[str, float | str] = {"loss": entry["loss"]}
        if self.session.standing.best_loss is not None:
            shown["best_held_out_loss"] = self.session.standing.best_loss
        shown["tokens_per_second"] = entry["tokens"] / max(entry["seconds"], 1e-3)
        self.session.stage.update(entry["step"], len(self.session.steps), "step", **shown)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write the state after the current step, whole or not at all, and prune what it makes needless."""
        self._write_checkpoint(adapter.weights(self.accelerator.unwrap_model(self.model)), self.optimizer.state_dict())

    def _write_checkpoint(self, weights: dict[str, torch.Tensor], optimizer: dict[str, Any]) -> None:
        standing = self.session.standing
        folder = checkpoint.folder_of(self.session.checkpoints, standing.step)
        with files.atomic_path(folder) as temporary:
            adapter.save(self.accelerator.unwrap_model(self.model), weights, temporary)
            torch.save(optimizer, temporary / OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), temporary / SCHEDULER)
            self.state.save_to_json(str(temporary / _STATE))
            checkpoint.seal(temporary, standing)
        checkpoint.prune(self.session.checkpoints, standing)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        adapter.restore(self.model, Path(resume_from_checkpoint))


def rate_factor(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Share of the peak learning rate at a step (from 1): a linear climb, then the schedule, never quite zero."""
    if step <= warmup:
        return step / (warmup + 1)
    passed = (step - warmup - 1) / max(steps - warmup, 1)
    if schedule == "constant":
        return 1.0
    return 1 - passed if schedule == "linear" else (1 + math.cos(math.pi * passed)) / 2


def _step_seed(seed: int, step: int) -> int:
    """Dropout of a step depends on the seed and the step alone, so resuming and repeating a step change nothing."""
    return (seed * 1_000_003 + step) % 2**63


def _diverged(step: Step, what: str) -> TrainingError:
    names = step.names
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return TrainingError(
        f"training diverged: {what}",
        where=f"step {step.number}, conversations {shown}",
        fix="halve training.learning_rate, lengthen training.warmup_steps, or look for a broken conversation among these",
    )
