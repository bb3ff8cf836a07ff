"""How much faster the evaluation is than transformers' `generate` on the same turns, greedy, with the same weights.

    python bench/eval.py [--conversations 2] [--tokens 48] [--rounds 2] [--gguf FILE] [--base smollm2-135m]

Prints both times of each round, each arm going first in turn, and their ratio (the claim: at least 5). The peer is
`AutoModelForCausalLM.generate` as it comes, one turn after another; ours is llama-server, one for each thread, with its
prompt cache, the models' start included.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.aftercare import conversations_of
from pipeline.bases import fetch
from pipeline.config import Config
from pipeline.data.dataset import Conversation
from pipeline.environment import llama_cpp
from pipeline.environment.hardware import cores
from pipeline.export.convert import convert
from pipeline.export.quantize import quantize
from pipeline.progress import Reporter
from pipeline.validation.play import play, turns
from pipeline.validation.servers import serve_apart


def ours(gguf: Path, conversations: list[Conversation], tokens: int, threads: int, llama: object) -> tuple[float, int]:
    """Seconds and generated tokens."""
    started = time.monotonic()
    with serve_apart(llama, gguf, threads=threads, most=threads, context=2048) as servers:  # type: ignore[arg-type]
        replies = play(servers, conversations, max_tokens=tokens)
    return time.monotonic() - started, sum(reply.tokens for reply in replies)


def theirs(checkpoint: Path, conversations: list[Conversation], tokens: int, threads: int) -> tuple[float, int]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    started, made = time.monotonic(), 0
    for conversation in conversations:
        for at, message in enumerate(conversation.messages):
            if message["role"] == "assistant":
                history = [dict(one) for one in conversation.messages[:at]]
                prompt = tokenizer.apply_chat_template(
                    history, add_generation_prompt=True, return_tensors="pt", return_dict=True
                )
                with torch.no_grad():
                    out = model.generate(**prompt, max_new_tokens=tokens, do_sample=False)
                made += out.shape[1] - prompt["input_ids"].shape[1]
    return time.monotonic() - started, made


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--conversations", type=int, default=2)
    arguments.add_argument("--tokens", type=int, default=48)
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--gguf", type=Path)
    arguments.add_argument("--base", default="smollm2-135m")
    given = arguments.parse_args()
    settings, threads = Config(), cores().value
    with Reporter("plain").stage("prepare") as stage:
        llama = llama_cpp.ensure(settings.cache_dir, stage)
        checkpoint = fetch.ensure(given.base, settings.cache_dir, stage).path
        gguf = given.gguf or settings.cache_dir / "bench" / f"{given.base}-Q4_K_M.gguf"
        if not gguf.is_file():
            exact = gguf.with_suffix(".f16")
            convert(checkpoint, exact, llama, {})
            quantize(exact, gguf, "Q4_K_M", llama, threads, 8e9)
            exact.unlink()
    chosen = conversations_of([settings.data.folder], held_out_only=True)[: given.conversations]
    print(f"{sum(turns(item) for item in chosen)} turns of {len(chosen)} conversations, {threads} threads")
    sums = {"ours": [0.0, 0], "theirs": [0.0, 0]}
    for turn in range(given.rounds):
        arms = [("ours", lambda: ours(gguf, chosen, given.tokens, threads, llama))]
        arms.insert(turn % 2, ("theirs", lambda: theirs(checkpoint, chosen, given.tokens, threads)))
        for name, arm in arms:
            seconds, made = arm()
            sums[name][0] += seconds
            sums[name][1] += made
            print(
                f"round {turn + 1}, {name}: {seconds:.1f} s, {made} tokens, {made / seconds:.1f} a second", flush=True
            )
    (mine, made), (peer, peer_made) = sums["ours"], sums["theirs"]
    print(f"ratio: {peer / mine:.1f} in time, {(made / mine) / (peer_made / peer):.1f} in tokens a second")


if __name__ == "__main__":
    main()
