"""`--quant auto`: the smallest file that is not worse, by measurement.

Candidates are tried from the smallest. One is taken when its numbers stay near those of the f16 file (KL divergence and
top-1 agreement within the parity bounds) and the Dungeon Master's turns it plays are not worse: scored turn by turn
against the f16 file's, no more than `margin` lower on average and not significantly lower by a paired bootstrap over
conversations. Speed is measured and told; it decides nothing, or a busy hour of the machine would choose another file
from the same inputs.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.artifacts import LlamaCpp
from pipeline.config import ParityConfig
from pipeline.errors import ExportError
from pipeline.export import parity
from pipeline.export.quantize import KINDS, predict_sizes, quantize, takes_matrix, too_large
from pipeline.statistics import difference as mean_difference

Scores = Sequence[tuple[str, float]]  # (conversation, 0…1) for each held-out turn, always in the same order
Score = Callable[[Path], Scores]  # by a model's file
_TIMED = 32  # tokens


@dataclass(frozen=True)
class Difference:
    """Mean of the turn-by-turn differences to the reference, with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Candidate:
    """`difference` is None where nothing scores turns; `verdict` says why it was taken or not; speed on this machine."""

    kind: str
    bytes: int
    mean_kl: float | None
    top1: float | None
    difference: Difference | None
    tokens_per_second: float | None
    verdict: str


@dataclass(frozen=True)
class Choice:
    kind: str
    path: Path
    candidates: list[Candidate]

    @property
    def reason(self) -> str:
        """Every candidate that was looked at before the one taken, and that one."""
        looked = [one for one in self.candidates if one.mean_kl is not None]
        return "; ".join(
            f"{one.kind} ({files.human_size(one.bytes)}, KL {one.mean_kl:.3f}, {one.tokens_per_second:.0f} tokens/s) {one.verdict}"
            for one in looked
        )

    def report(self) -> dict[str, Any]:
        candidates = [asdict(candidate) for candidate in self.candidates]
        return {"chosen": self.kind, "reason": self.reason, "candidates": candidates}


def choose(
    f16: Path,
    folder: Path,
    sequences: list[parity.Sequence],
    llama: LlamaCpp,
    bounds: ParityConfig,
    *,
    threads: int,
    max_bytes: float,
    margin: float,
    score: Score | None = None,
    imatrix: Path | None = None,
) -> Choice:
    """Quantise into `folder`, smallest first, until a file is not worse; the others are removed.

    Raises ExportError when no candidate fits `max_bytes`, or when every one that fits is worse.
    """
    sizes = predict_sizes(f16, llama)
    fitting = [kind for kind in KINDS if sizes[kind] <= max_bytes]
    if not fitting:
        raise too_large(KINDS[0], sizes[KINDS[0]], max_bytes, sizes)
    tried: list[Candidate] = []
    with tempfile.TemporaryDirectory(dir=folder) as work:
        exact = parity.llama_logits(f16, sequences, llama, threads, "f16", Path(work) / "f16")
        wanted = list(score(f16)) if score else None
        for kind in fitting:
            path = folder / f"model-{kind}.gguf"
            quantize(f16, path, kind, llama, threads, max_bytes, imatrix if takes_matrix(kind) else None)
            shipped = parity.llama_logits(path, sequences, llama, threads, "f16", Path(work) / kind)
            near = parity.compare(exact, shipped, sequences)
            within = near.mean_kl <= bounds.quant_mean_kl and near.top1 >= bounds.quant_top1
            difference = paired_difference(wanted, list(score(path))) if within and score and wanted else None
            verdict = _verdict(within, difference, margin)
            speed = tokens_per_second(path, llama, threads)
            tried.append(Candidate(kind, path.stat().st_size, near.mean_kl, near.top1, difference, speed, verdict))
            if verdict.startswith("taken"):
                rest = [_untried(other, sizes[other], max_bytes) for other in KINDS[len(tried) :]]
                return Choice(kind, path, tried + rest)
            files.remove(path)
    raise ExportError(
        "every quantisation that fits is worse than the f16 file: "
        + "; ".join(f"{one.kind} {one.verdict}" for one in tried),
        where=f"export.max_size_gb allows {files.human_size(max_bytes)}",
        fix="raise --max-size, choose another --base, or name the one you accept with --quant",
    )


def tokens_per_second(model: Path, llama: LlamaCpp, threads: int) -> float:
    """Generated tokens a second on this machine's CPU, the median of three, by llama-bench."""
    command = [str(llama.tool("llama-bench")), "-m", str(model), "-t", str(threads), "-ngl", "0", "-o", "json"]
    command += ["-p", "0", "-n", str(_TIMED), "-r", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise ExportError(
            f"llama-bench cannot run the file: {words[-1] if words else f'exit code {done.returncode}'}",
            where=str(model),
            fix="remove the run's export folder and run again",
        )
    return float(sorted(json.loads(done.stdout)[0]["samples_ts"])[1])


def paired_difference(reference: Scores, other: Scores) -> Difference:
    """Mean and 95 % bootstrap interval, over conversations, of `other` minus `reference` on the same turns."""
    if [turn[0] for turn in reference] != [turn[0] for turn in other] or not reference:
        raise ExportError(
            f"turns cannot be paired: {len(reference)} scores for the f16 file, {len(other)} for the candidate",
            fix="score the same held-out turns for every file",
        )
    turns = zip(reference, other, strict=True)
    found = mean_difference((conversation, ours, theirs) for (conversation, theirs), (_, ours) in turns)
    return Difference(found.value, found.low, found.high)


def _verdict(within: bool, difference: Difference | None, margin: float) -> str:
    if not within:
        return "strays too far from the f16 file's numbers"
    if difference is None:
        return "taken: near the f16 file's numbers (no turns were scored)"
    span = f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
    if difference.high < 0:
        return f"plays significantly worse: {span}"
    if difference.mean < -margin:
        return f"plays worse by more than {margin}: {span}"
    return f"taken: not worse, {span}"


def _untried(kind: str, size: int, max_bytes: float) -> Candidate:
    why = "larger than allowed" if size > max_bytes else "not tried: a smaller one is not worse"
    return Candidate(kind, size, None, None, None, None, why)
