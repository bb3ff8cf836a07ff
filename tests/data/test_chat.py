"""What is trained on is what the template renders, token by token, with loss on the DM's words alone."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from pipeline.data.chat import messages_of, prompt_ids, render
from pipeline.data.dataset import Message
from pipeline.errors import BaseModelError, DataError
from tests.data.samples import GOOD, check

CHATML = """{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system
Be kind.<|im_end|>
{% endif %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
THINKING = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{% if m['role'] == 'assistant' and loop.last %}<think>

</think>

{% endif %}{{ m['content'].split('</think>')[-1] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}\
{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}\
<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}
{{ first if loop.first else '' }}{{ m['content'] | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
LLAMA = """{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>

{% if loop.first %}Today: {{ date_string }}

{% endif %}{{ m['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}\
<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
SPECIAL = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], None),
    "thinking": (THINKING, ["<|im_start|>", "<|im_end|>", "<think>", "</think>"], None),
    "gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>", "<bos>"], "<bos>"),
    "llama": (LLAMA, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin|>"], "<|begin|>"),
}
TALK = (
    Message(role="system", content="Role: Dungeon Master"),
    Message(role="user", content="I hide."),
    Message(role="assistant", content="Dust.\n\n[roll: stealth]"),
    Message(role="user", content="<TOOLCALL>stealth: 1 + 1(skill) = *2*</TOOLCALL>"),
    Message(role="assistant", content="Seen — “you!”"),
)


def tiny(name: str) -> Any:
    """A byte-level tokenizer: one token a byte, and the template's own tokens."""
    template, special, bos = SPECIAL[name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=special[1])
    fast.add_tokens(special, special_tokens=True)
    fast.chat_template = template
    return fast


def supervised_text(tokenizer: Any, messages: Any) -> list[str]:
    """The runs of supervised tokens, decoded."""
    rendered = render(tokenizer, messages)
    runs: list[list[int]] = [[]]
    for token, wanted in zip(rendered.ids, rendered.supervised, strict=True):
        if wanted:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


GOLDEN = {
    "chatml": "<|im_start|>system\nRole: Dungeon Master<|im_end|>\n<|im_start|>user\nI hide.<|im_end|>\n<|im_start|>assistant\n",
    "thinking": "<|im_start|>system\nRole: Dungeon Master<|im_end|>\n<|im_start|>user\nI hide.<|im_end|>\n<|im_start|>assistant\n",
    "gemma": "<bos><start_of_turn>user\nRole: Dungeon Master\n\nI hide.<end_of_turn>\n<start_of_turn>model\n",
    "llama": "<|begin|><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n\nRole: Dungeon Master<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nI hide.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
}


@pytest.mark.parametrize("name", SPECIAL)
def test_ids_and_labels_are_the_golden_ones(name: str) -> None:
    tokenizer = tiny(name)
    rendered = render(tokenizer, TALK)
    prompt = tuple(tokenizer(GOLDEN[name], add_special_tokens=False)["input_ids"])
    assert prompt_ids(tokenizer, TALK[:2]) == prompt
    assert rendered.ids[: len(prompt)] == prompt
    assert not any(rendered.supervised[: len(prompt)])
    end = SPECIAL[name][1][2 if name == "llama" else 1]
    reply = tokenizer("Dust.\n\n[roll: stealth]" + end, add_special_tokens=False)["input_ids"]
    assert rendered.labels[len(prompt) : len(prompt) + len(reply) + 1] == [*reply, -100]
    assert supervised_text(tokenizer, TALK) == ["Dust.\n\n[roll: stealth]" + end, "Seen — “you!”" + end]


@pytest.mark.parametrize("name", SPECIAL)
def test_the_whole_is_tokenised_as_the_runtime_does(name: str) -> None:
    tokenizer = tiny(name)
    text = tokenizer.apply_chat_template(list(map(dict, TALK)), tokenize=False, date_string="26 Jul 2024")
    assert render(tokenizer, TALK).ids == tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", SPECIAL)
def test_template_tokens_in_the_text_stay_text(name: str) -> None:
    tokenizer = tiny(name)
    special = [token for token in SPECIAL[name][1] if token != "</think>"]
    hostile = "".join(special)
    talk = (TALK[0], Message(role="user", content=f"say {hostile}"), Message(role="assistant", content=f"{hostile}!"))
    plain = (TALK[0], Message(role="user", content="say x"), Message(role="assistant", content="x!"))
    added = set(tokenizer.get_added_vocab().values())

    def specials(messages: Any) -> list[int]:
        return [token for token in render(tokenizer, messages).ids if token in added]

    assert specials(talk) == specials(plain)
    assert tokenizer.decode(render(tokenizer, talk).ids).count(hostile) == 2


def test_added_tokens_that_are_text_are_not_cut() -> None:
    """Gemma has runs of line ends as added tokens of their own; the runtime reads them whole."""
    tokenizer = tiny("gemma")
    tokenizer.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    text = tokenizer.apply_chat_template(list(map(dict, TALK)), tokenize=False, date_string="26 Jul 2024")
    assert render(tokenizer, TALK).ids == tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert tokenizer.convert_tokens_to_ids("\n\n") in render(tokenizer, TALK).ids


@pytest.mark.parametrize("name", ["gemma", "llama"])
def test_there_is_exactly_one_bos(name: str) -> None:
    tokenizer = tiny(name)
    assert list(render(tokenizer, TALK).ids).count(tokenizer.bos_token_id) == 1


def test_without_a_system_message_the_templates_own_carries_no_loss() -> None:
    tokenizer = tiny("chatml")
    assert tokenizer.decode(render(tokenizer, TALK[1:]).ids).startswith("<|im_start|>system\nBe kind.")
    assert supervised_text(tokenizer, TALK[1:])[0].startswith("Dust.")


def test_a_conversation_without_a_dm_turn_is_refused() -> None:
    with pytest.raises(DataError, match="none of the conversation"):
        render(tiny("chatml"), TALK[:2])


def test_a_conversation_of_nothing_but_the_dm_is_refused() -> None:
    tokenizer = tiny("chatml")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    with pytest.raises(DataError, match="all of the conversation"):
        render(tokenizer, TALK[2:3])


def test_a_template_without_an_end_of_turn_token_is_refused() -> None:
    tokenizer = tiny("chatml")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(BaseModelError, match="does not end"):
        render(tokenizer, TALK)


def test_a_template_that_changes_the_text_is_refused() -> None:
    talk = (*TALK[:2], Message(role="assistant", content="a</think>b"))
    with pytest.raises(DataError, match="changes the messages"):
        render(tiny("thinking"), talk)
    with pytest.raises(DataError, match="changes the messages"):
        render(tiny("gemma"), (*TALK[:2], Message(role="assistant", content="blank at the end ")))


def test_a_base_without_a_template_is_refused() -> None:
    tokenizer = tiny("chatml")
    tokenizer.chat_template = None
    with pytest.raises(BaseModelError, match="no chat template"):
        render(tokenizer, TALK)


def test_a_scenario_becomes_messages_as_the_app_sends_them() -> None:
    scenario = check(GOOD).scenario
    assert scenario
    messages = messages_of(scenario)
    assert [message["role"] for message in messages[:5]] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[0]["content"] == GOOD.split("\n\n")[0].removeprefix("# SYSTEM\n")
    assert messages[3]["content"] == "<TOOLCALL>stealth: 12 + 5(skill) = *17*</TOOLCALL>"
