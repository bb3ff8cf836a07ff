"""Tiny random models of the real architectures with a tiny tokenizer, and a small conversation set."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from pipeline.artifacts import BaseModel, Dataset
from pipeline.config import LoraConfig, TrainingConfig
from pipeline.training import adapter, native

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "llama": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": False},
    "gemma3_text": {
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 16,
    },
    "gemma3n_text": {  # the numbers that llama.cpp has fixed for the real thing
        "num_hidden_layers": 30,
        "num_kv_shared_layers": 10,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 6,
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20,
        "intermediate_size": [96] * 30,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": 320,
        "laurel_rank": 64,
        "altup_num_inputs": 4,
        "sliding_window": 24,
    },
}
LINES = (
    "I creep past the guard.",
    "I ask about the tower.",
    "I search the old chest for traps.",
    "We rest by the fire.",
)
REPLIES = (
    "You move without a sound.\n\n[roll: stealth]",
    "She shrugs. Lights, she says.",
    "[roll: investigation]",
    "Night.",
)


@pytest.fixture
def compiled(llama):
    """The compiled kernels, loaded for one test."""
    if adapter.pick_precision(torch.device("cpu")).dtype != torch.bfloat16 or llama.kernels is None:
        pytest.skip("this processor does not multiply bf16: training computes in fp32, without the compiled kernels")
    yield native.load(llama.kernels)
    native.load(None)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def conversation(number: int, split: str = "train", turns: int = 2, weight: float = 1.0) -> dict:
    messages = [{"role": "system", "content": f"Role: Dungeon Master\nParty: hero {number}"}]
    for turn in range(turns):
        messages.append({"role": "user", "content": LINES[(number + turn) % 4]})
        messages.append({"role": "assistant", "content": REPLIES[(number + turn) % 4]})
    return {
        "id": f"test/c{number}",
        "source": "training_data/test.md",
        "line": number + 1,
        "category": "test",
        "kind": "scenario",
        "split": split,
        "weight": weight,
        "messages": messages,
    }


def write_dataset(path: Path, conversations: list[dict]) -> Dataset:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in conversations))
    return Dataset(conversations=path, report=path, digest="d")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Dataset:
    items = [conversation(number, turns=1 + number % 3) for number in range(12)]
    items += [conversation(number, "dev") for number in range(100, 104)]
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset.jsonl", items)


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator([*LINES, *REPLIES, "system user assistant Role: Dungeon Master"], trainer)
    result = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<pad>")
    result.chat_template = TEMPLATE
    return result


@pytest.fixture(scope="session")
def base_of(tmp_path_factory, tokenizer):
    """A function from an architecture's name to its tiny checkpoint."""
    from transformers import AutoConfig, AutoModelForCausalLM

    made: dict[str, BaseModel] = {}

    def make(architecture: str) -> BaseModel:
        if architecture not in made:
            torch.manual_seed(0)
            config = AutoConfig.for_model(architecture, **(SMALL | ARCHITECTURES[architecture]))
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "q_norm" in name:
                        weight.mul_(0.1)  # unit queries make a random model's softmax a knife edge
            folder = tmp_path_factory.mktemp(architecture)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[architecture] = BaseModel(architecture, folder, f"digest-{architecture}", architecture, "none")
        return made[architecture]

    return make


@pytest.fixture
def config() -> TrainingConfig:
    return TrainingConfig(
        lora=LoraConfig(rank=4, alpha=8),
        learning_rate=0.01,
        batch_tokens=256,
        epochs=3.0,
        warmup_steps=1,
        checkpoint_interval=2,
        evaluations=2,
        max_seq_length=256,
    )
