"""How fast and how frugal the export is, against the usual road, on the same base and the same adapter.

    python bench/export.py --base artifacts/cache/bases/smollm2-135m-… [--rounds 3] [--kind Q4_K_M]
    python bench/export.py --random 1b

ours:   the deltas added into the base's own tensors → llama.cpp's converter as we start it → llama-quantize
usual:  load the model, PEFT's merge_and_unload, save_pretrained → the same converter and llama-quantize as they come

Every arm and step runs in a process of its own, arms interleaved round after round. Wall time is the steps' sum, and
peak memory the largest resident set of any step with the processes it starts. `--clock cpu` counts processor time
instead: on a shared machine neighbours hardly touch it. Converter and quantiser are the same programs in both arms; the
lines below the table say what the merge brings alone, what ratio would be left if merging took no time and no memory,
and what the converter takes before it has read a weight. The last line gives the merge's rate as a share of the disk's
own sequential rate (reading and writing the same files).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.artifacts import LlamaCpp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pipeline  # noqa: E402, F401 - sets how threads wait, for both arms

ARMS = ("ours", "usual")
STEPS = ("merge", "convert", "quantise")


def main() -> None:
    options = _options()
    if options.step:
        step(options.arm, options.step, options.folder, options.base, options.kind)
        return
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name)
        base = options.base or folder / "base"
        # In a process of its own: a child's peak memory counts what its parent held when it was started.
        making = multiprocessing.get_context("spawn").Process(target=prepare, args=(folder, base, options.random))
        making.start()
        making.join()
        if making.exitcode:
            sys.exit("the base and the adapter could not be made")
        rounds = [
            {arm: _arm(arm, folder, base, options) for arm in (ARMS if number % 2 == 0 else ARMS[::-1])}
            for number in range(options.rounds)
        ]
        print(table(rounds, disk_rate(base, folder), _bytes(base), converter_alone(base, folder)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--base", type=Path, help="a checkpoint in Hugging Face form")
    which.add_argument("--random", choices=("1b",), help="a random Llama of 1.1 thousand million parameters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--work", type=Path, help="where to write; default: the system's temporary folder")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _arm(arm: str, folder: Path, base: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    found = {}
    for name in STEPS:
        command = [sys.executable, str(Path(__file__).resolve()), "--base", str(base), "--folder", str(folder)]
        command += ["--arm", arm, "--step", name, "--kind", options.kind]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        wall = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"{arm}, {name}: {done.stderr[-2000:]}")
        numbers = json.loads(done.stdout.splitlines()[-1])
        found[name] = {"seconds": wall if options.clock == "wall" else numbers["cpu"], "peak": numbers["peak"]}
        print(
            f"{arm:>6} {name:>9}: {found[name]['seconds']:6.1f} s, {found[name]['peak'] / 1e6:7.0f} MB", file=sys.stderr
        )
    shutil.rmtree(folder / f"{arm}-merged")
    return found


def step(arm: str, name: str, folder: Path, base: Path, kind: str) -> None:
    """One step of one arm, then its processor time and peak memory (its children's too) as JSON."""
    llama = _llama()
    merged, f16, out = folder / f"{arm}-merged", folder / f"{arm}-f16.gguf", folder / f"{arm}.gguf"
    threads = int(os.environ["OMP_NUM_THREADS"])
    if name == "merge":
        merge_ours(base, folder / "adapter", merged) if arm == "ours" else merge_usual(base, folder / "adapter", merged)
    elif arm == "usual":
        converting = [sys.executable, llama.converter, merged, "--outfile", f16, "--outtype", "f16"]
        quantising = [llama.tool("llama-quantize"), f16, out, kind, str(threads)]
        subprocess.run(converting if name == "convert" else quantising, check=True, stdout=2)
    elif name == "convert":
        from pipeline.export.convert import convert

        convert(merged, f16, llama, {"general.name": "bench"})
    else:
        from pipeline.export.quantize import quantize

        quantize(f16, out, kind, llama, threads, 1e12)
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in spent)
    print(json.dumps({"cpu": cpu, "peak": max(one.ru_maxrss for one in spent) * 1024}))


def merge_ours(base: Path, adapter: Path, out: Path) -> None:
    from pipeline.export.merge import merge

    merge(base, adapter, out)


def merge_usual(base: Path, adapter: Path, out: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    shutil.copy(base / "tokenizer_config.json", out / "tokenizer_config.json")
    for path in out.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # as ours does: otherwise the disk's work is left to the next step


def prepare(folder: Path, base: Path, size: str | None) -> None:
    if size:
        random_base(base)
    adapter(folder / "adapter", base)


def adapter(folder: Path, base: Path) -> None:
    """LoRA of rank 32 on every linear layer, as training leaves it, with random values."""
    import torch
    from safetensors.torch import save_file

    from pipeline.export.merge import canonical, tensor_slots

    folder.mkdir()
    pairs = {}
    for slot in tensor_slots(base):
        if canonical(slot.name).endswith("_proj.weight"):
            name = "base_model.model." + slot.name.removesuffix(".weight")
            pairs[f"{name}.lora_A.weight"] = 0.01 * torch.randn(32, slot.shape[1])
            pairs[f"{name}.lora_B.weight"] = 0.01 * torch.randn(slot.shape[0], 32)
    save_file(pairs, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 32,
        "lora_alpha": 64,
        "target_modules": "all-linear",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def random_base(folder: Path) -> None:
    """A random Llama of about 1.1 thousand million parameters (TinyLlama's shape), with the embedded base's tokenizer."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    embedded = next((ROOT / "artifacts/cache/bases").glob("smollm2-135m-*"), None)
    if embedded is None:
        sys.exit("the embedded base is not unpacked yet: train once")
    numbers = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
    config = AutoConfig.for_model(
        "llama", **numbers, num_key_value_heads=4, vocab_size=49152, head_dim=64, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, architectures=["LlamaForCausalLM"], dtype="bfloat16"
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()}
    folder.mkdir()
    weights = {
        name: (0.02 * torch.randn(shape)).to(torch.bfloat16)
        for name, shape in shapes.items()
        if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(embedded / name, folder / name)


def disk_rate(base: Path, folder: Path) -> float:
    """Bytes a second of copying the base's weights and syncing them: as little as a merge can do."""
    started = time.perf_counter()
    for path in base.glob("*.safetensors"):
        shutil.copy(path, folder / "copy")
        with (folder / "copy").open("rb") as file:
            os.fsync(file.fileno())
        (folder / "copy").unlink()
    return _bytes(base) / (time.perf_counter() - started)


def converter_alone(base: Path, folder: Path) -> float:
    """Peak bytes of the converter as we start it, without a single weight: torch, transformers and the tokenizer."""
    from pipeline.export.convert import STARTER

    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=2, check=True);"
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    command = [
        sys.executable,
        "-c",
        code,
        sys.executable,
        str(STARTER),
        str(_llama().converter),
        str(base),
        "--vocab-only",
    ]
    command += ["--outfile", str(folder / "vocabulary.gguf")]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _llama() -> LlamaCpp:
    from pipeline.environment import llama_cpp

    llama = llama_cpp.find(ROOT / "artifacts" / "cache")
    if llama is None:
        sys.exit("llama.cpp is not built yet: train once")
    return llama


def _bytes(base: Path) -> int:
    return sum(path.stat().st_size for path in base.glob("*.safetensors"))


def table(rounds: list[dict[str, Any]], rate: float, size: int, alone: float) -> str:
    """Medians over the rounds, and ours as a ratio to the usual road."""
    lines = ["| | merge s | convert s | quantise s | all s | peak MB |", "|---|---:|---:|---:|---:|---:|"]
    seconds: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for arm in ARMS:
        times = [statistics.median(one[arm][name]["seconds"] for one in rounds) for name in STEPS]
        seconds[arm] = statistics.median(sum(one[arm][name]["seconds"] for name in STEPS) for one in rounds)
        peaks[arm] = statistics.median(max(one[arm][name]["peak"] for name in STEPS) for one in rounds) / 1e6
        lines.append(
            f"| {arm} | {' | '.join(f'{value:.1f}' for value in times)} | {seconds[arm]:.1f} | {peaks[arm]:.0f} |"
        )
    merging = {arm: statistics.median(one[arm]["merge"]["peak"] for one in rounds) / 1e6 for arm in ARMS}
    spent = {arm: statistics.median(one[arm]["merge"]["seconds"] for one in rounds) for arm in ARMS}
    lines.append(
        f"\nratio ours / usual: time {seconds['ours'] / seconds['usual']:.2f}, peak {peaks['ours'] / peaks['usual']:.2f}; "
        f"the merge alone: time {spent['ours'] / spent['usual']:.2f}, peak {merging['ours'] / merging['usual']:.2f} "
        f"({merging['ours']:.0f} against {merging['usual']:.0f} MB)"
    )
    common = {
        key: [statistics.median(one["ours"][name][key] for one in rounds) for name in STEPS[1:]]
        for key in ("seconds", "peak")
    }
    lines.append(
        f"converter and quantiser take {sum(common['seconds']) / seconds['ours']:.0%} of our time: a merge "
        f"of no time would give {sum(common['seconds']) / seconds['usual']:.2f}; they peak at {max(common['peak']) / 1e6:.0f} MB, "
        f"of which the converter takes {alone / 1e6:.0f} MB without a single weight: a merge of no memory would give "
        f"{max(common['peak']) / 1e6 / peaks['usual']:.2f}"
    )
    share = size / spent["ours"] / rate
    lines.append(
        f"the disk copies and syncs {rate / 1e6:.0f} MB/s; merging reaches {share:.0%} of that, start of Python included"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
