"""Everything dm-forge knows how to explain.

PipelineError            exit 1: what went wrong, where, and what to do about it
├── UsageError           exit 2: a flag or a config value is wrong
├── DataError            exit 1: training data has faults (all of them are listed)
├── MachineError         exit 1: a tool, the disk, the network or the memory is missing
├── BaseModelError       exit 1: the base model cannot be had, read or used
├── TrainingError        exit 1: training diverged or ran out of memory
├── ExportError          exit 1: the exported file could not be made or differs from the trained model
├── ValidationError      exit 1: the model could not be measured
├── GateRefused          exit 3: the model was measured and is not good enough
└── Interrupted          exit 130: the user pressed Ctrl-C; state is kept
"""

from __future__ import annotations


class PipelineError(Exception):
    """A known failure. `what` says what is wrong with the value shown, `where` names the file:line, config key
    or command, `fix` says what to do next."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  to do: {self.fix}")
        return "\n".join(lines)


class UsageError(PipelineError):
    exit_code = 2


class DataError(PipelineError):
    pass


class MachineError(PipelineError):
    pass


class BaseModelError(PipelineError):
    pass


class TrainingError(PipelineError):
    pass


class ExportError(PipelineError):
    pass


class ValidationError(PipelineError):
    pass


class GateRefused(PipelineError):
    exit_code = 3


class Interrupted(PipelineError):
    exit_code = 130
