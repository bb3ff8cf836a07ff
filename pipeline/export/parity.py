"""Does the exported file behave like the trained model? Numbers, not impressions.

Three comparisons on held-out conversations: token ids and chat template (transformers against llama-server), the
trained model against the f16 GGUF, and the f16 GGUF against the quantised one (KL divergence in nats and top-1
agreement at the positions where the Dungeon Master speaks).
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.artifacts import Dataset, LlamaCpp
from pipeline.config import ParityConfig
from pipeline.data.chat import prompt_ids, render
from pipeline.data.dataset import Conversation, Message, Split, read_conversations
from pipeline.errors import ExportError
from pipeline.export.reference import trained_logits
from pipeline.llama_server import LlamaServer, serve

_HISTOGRAM_EDGES = (0.0, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, float("inf"))


@dataclass(frozen=True)
class Sequence:
    """One conversation: its messages, its token ids, and the positions whose next-token logits are compared."""

    name: str
    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    positions: list[int]


@dataclass(frozen=True)
class Agreement:
    """How close two models' next-token distributions are; KL in nats, `first_divergence` names the first other choice."""

    positions: int
    mean_kl: float
    max_kl: float
    top1: float
    histogram: list[int] = field(default_factory=list)
    first_divergence: str | None = None


def sequences(checkpoint: Path, dataset: Dataset, count: int, split: Split = "test") -> list[Sequence]:
    """`count` conversations of a split, drills and scenarios in turn, rendered as in training; compared where the DM's
    tokens are predicted."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    held_out = [item for item in read_conversations(dataset.conversations) if item.split == split]
    if not held_out:
        raise ExportError(
            f"the dataset has no {split} conversations to compare by",
            where=str(dataset.conversations),
            fix="add scenarios; a corpus this small can do without choosing: name a --quant",
        )
    chosen = []
    for conversation in in_turn(held_out)[:count]:
        rendered = render(tokenizer, conversation.messages)
        positions = [index - 1 for index, wanted in enumerate(rendered.supervised) if wanted]
        chosen.append(Sequence(conversation.id, conversation.messages, rendered.ids, positions))
    return chosen


def in_turn(conversations: Iterable[Conversation]) -> list[Conversation]:
    """Drill, scenario, drill, … in their order: the dataset is sorted, and its first ones are all of one kind."""
    kinds: tuple[list[Conversation], list[Conversation]] = ([], [])
    for one in conversations:
        kinds[one.kind != "drills"].append(one)
    return [one for pair in zip_longest(*kinds) for one in pair if one is not None]


def prove(
    merged: Path,
    f16: Path,
    quantised: Path,
    sequences: list[Sequence],
    llama: LlamaCpp,
    bounds: ParityConfig,
    threads: int,
) -> dict[str, Any]:
    """The parity report as plain data. Raises ExportError when a bound is broken: then no path may be printed."""
    check_tokens(quantised, merged, sequences, llama, threads)
    with tempfile.TemporaryDirectory(dir=quantised.parent) as folder:
        exact = llama_logits(f16, sequences, llama, threads, "f32", Path(folder) / "f16")
        shipped = llama_logits(quantised, sequences, llama, threads, "f16", Path(folder) / "quantised")
        converted = compare(trained_logits(merged, sequences, threads), exact, sequences)
        quantisation = compare(exact, shipped, sequences)
    require("the f16 GGUF", "the trained model", converted, bounds.f16_mean_kl, bounds.f16_top1)
    require("the quantised GGUF", "the f16 GGUF", quantisation, bounds.quant_mean_kl, bounds.quant_top1)
    return {
        "conversations": [sequence.name for sequence in sequences],
        "tokens_equal": sum(len(sequence.ids) for sequence in sequences),
        "f16_against_trained": asdict(converted),
        "quantised_against_f16": asdict(quantisation),
        "histogram_edges": [str(edge) for edge in _HISTOGRAM_EDGES],
        "bounds": bounds.model_dump(),
    }


def check_tokens(gguf: Path, checkpoint: Path, sequences: list[Sequence], llama: LlamaCpp, threads: int) -> None:
    """Ask the file itself, served by llama.cpp: every conversation's ids, one BOS at most, and that replies can end.

    Raises ExportError where template and tokenizer in the GGUF give other ids than training saw, for the whole
    conversation or for the prompt of its last turn, and where the template's end-of-turn token does not end a reply.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with serve(llama, gguf, threads=threads, context=256, arguments=("--no-prefill-assistant",)) as server:
        ours, theirs = list(tokenizer("")["input_ids"]), _tokenise(server, "")
        _require_equal("what stands before every text", ours, theirs)
        for sequence in sequences:
            whole, history = list(sequence.messages), list(sequence.messages[:-1])
            theirs = _server_ids(server, whole, generation_prompt=False)
            _require_equal(sequence.name, list(sequence.ids), theirs)
            theirs = _server_ids(server, history, generation_prompt=True)
            _require_equal(f"{sequence.name}, its last prompt", list(prompt_ids(tokenizer, history)), theirs)
            bos = tokenizer.bos_token_id
            if bos is not None and theirs[:2] == [bos, bos]:
                raise ExportError(
                    f"the prompt of {sequence.name} begins with two BOS tokens",
                    where=str(gguf),
                    fix="mend add_bos_token in the base's tokenizer files",
                )
        for end in sorted({sequence.ids[sequence.positions[-1] + 1] for sequence in sequences}):
            require_end(server, gguf, end)


def _server_ids(server: LlamaServer, messages: list[Message], generation_prompt: bool) -> list[int]:
    body = {"messages": messages, "add_generation_prompt": generation_prompt}
    return _tokenise(server, server.post("/apply-template", body)["prompt"])


def _tokenise(server: LlamaServer, text: str) -> list[int]:
    reply = server.post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
    return [int(token) for token in reply["tokens"]]


def require_end(server: LlamaServer, gguf: Path, token: int) -> None:
    """Make the model say its end-of-turn token: the runtime must stop there."""
    body = {"prompt": [token], "n_predict": 2, "temperature": 0, "logit_bias": [[token, 1e4]]}
    reply = server.post("/completion", body)
    if reply.get("stop_type") != "eos":
        raise ExportError(
            f"llama.cpp does not end a reply at token {token}, which ends the DM's turns in training: "
            f"it stopped by {reply.get('stop_type')!r}",
            where=str(gguf),
            fix="the base's EOS and end-of-turn tokens must be carried over; mend its generation_config.json",
        )


def _require_equal(name: str, ours: list[int], theirs: list[int]) -> None:
    if ours == theirs:
        return
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    raise ExportError(
        f"{name}: token {at} is {ours[at : at + 1]} in training but {theirs[at : at + 1]} in llama.cpp ({len(ours)} and {len(theirs)} tokens)",
        where="parity: token ids",
        fix="the base's tokenizer or chat template is not carried over faithfully; choose another base and report this one",
    )


def llama_logits(
    gguf: Path, sequences: list[Sequence], llama: LlamaCpp, threads: int, kv: str, reply: Path
) -> list[np.ndarray]:
    """The same positions' logits by llama.cpp, with a key/value cache in `kv` (f32 or f16), kept in the file `reply`."""
    values: list[int] = [len(sequences)]
    for sequence in sequences:
        wanted = set(sequence.positions)
        values += [len(sequence.ids), *sequence.ids, *(int(i in wanted) for i in range(len(sequence.ids)))]
    request = reply.with_suffix(".request")
    np.asarray(values, dtype="<i4").tofile(request)
    command = [str(llama.tool("dm-logits")), str(gguf), str(request), str(reply), str(threads), kv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise ExportError(
            f"llama.cpp cannot compute with the exported file: {words[-1] if words else f'exit code {done.returncode}'}",
            where=str(gguf),
            fix="the file is not usable: remove the run's export folder and run again",
        )
    lengths = [len(sequence.positions) for sequence in sequences]
    rows = np.memmap(reply, dtype="<f4", mode="r").reshape(sum(lengths), -1)
    return np.split(rows, np.cumsum(lengths)[:-1])


def compare(reference: Iterable[np.ndarray], other: Iterable[np.ndarray], sequences: list[Sequence]) -> Agreement:
    """KL(reference ‖ other) and top-1 agreement over conversations' logits, [compared positions, vocabulary] each.

    Vocabulary padding that only one side has is left out.
    """
    divergences, same = [], []
    for ours, theirs in zip(reference, other, strict=True):
        for start in range(0, len(ours), 64):  # float64 copies of a few rows at a time
            kl, agree = _distance(ours[start : start + 64], theirs[start : start + 64])
            divergences.append(kl)
            same.append(agree)
    kl, agree = np.maximum(np.concatenate(divergences), 0), np.concatenate(same)
    return Agreement(
        positions=len(kl),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        top1=float(agree.mean()),
        histogram=[int(count) for count in np.histogram(kl, bins=np.asarray(_HISTOGRAM_EDGES))[0]],
        first_divergence=_first_divergence(agree, kl, sequences),
    )


def _distance(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    width = min(ours.shape[1], theirs.shape[1])
    p, q = (torch.from_numpy(side[:, :width].astype(np.float64)).log_softmax(1) for side in (ours, theirs))
    kl = (p.exp() * (p - q)).sum(1)
    return kl.numpy(), (p.argmax(1) == q.argmax(1)).numpy()


def require(what: str, reference: str, found: Agreement, mean_kl: float, top1: float) -> None:
    """Raise ExportError when the agreement is outside its bounds (NaN included)."""
    if found.mean_kl <= mean_kl and found.top1 >= top1:
        return
    raise ExportError(
        f"{what} does not behave like {reference}: mean KL {found.mean_kl:.2e} (at most {mean_kl:.0e}), "
        f"top-1 agreement {found.top1:.3f} (at least {top1:.3f})",
        where=f"first other choice: {found.first_divergence or 'none'}",
        fix="nothing was promoted. Try --quant Q8_0; if the f16 file is at fault, report the base: its export is not faithful",
    )


def _first_divergence(agree: np.ndarray, kl: np.ndarray, sequences: list[Sequence]) -> str | None:
    if agree.all():
        return None
    row = at = int(np.argmin(agree))
    for sequence in sequences:
        if at < len(sequence.positions):
            return f"{sequence.name}, token {sequence.positions[at]} (KL {kl[row]:.2e})"
        at -= len(sequence.positions)
    return None
