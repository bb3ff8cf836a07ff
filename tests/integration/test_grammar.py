"""The grammar lets through what the vocabulary allows, and nothing else."""

import re

import pytest
import yaml

from pipeline.data.tools import VOCABULARY, Vocabulary, find_calls, load_vocabulary
from pipeline.errors import ValidationError
from pipeline.integration.grammar import for_messages, grammar, number
from pipeline.llama_server import serve
from tests import tiny_gguf

PARTY = ["Thordak", 'Jo "Fingers" O\'Dell', "Élara"]


@pytest.fixture(scope="module")
def server(llama, tmp_path_factory):
    model = tiny_gguf.write(tmp_path_factory.mktemp("grammar") / "tiny.gguf")
    with serve(llama, model, threads=1, context=1024) as server:
        yield server


def sample(server, text, seed, tokens=400):
    body = {
        "prompt": "x",
        "grammar": text,
        "seed": seed,
        "temperature": 2.0,
        "n_predict": tokens,
        "cache_prompt": False,
    }
    return server.post("/completion", body)["content"]


def test_whatever_the_sampler_draws_is_a_legal_call(server):
    vocabulary = load_vocabulary()
    only_calls = re.sub(r"root ::= .*", "root ::= call", grammar(PARTY))
    tools = set()
    for seed in range(40):
        text = sample(server, only_calls, seed)
        calls = find_calls(text)
        assert len(calls) == 1, text
        assert str(calls[0]) == text
        matched = vocabulary.match(calls[0])
        assert matched is not None, text
        assert matched.values.get("name", "player") in [*PARTY, "player"]
        tools.add(calls[0].tool)
    assert tools == set(vocabulary.names)


def test_prose_stays_free_and_a_bracket_can_only_begin_a_call(server):
    for seed in range(10):
        text = sample(server, grammar(PARTY), seed, 60)
        head, bracket, _ = text.partition("[")
        assert not bracket or not head or head.endswith("\n")


def test_a_grammar_with_a_fault_is_refused_by_the_server(server):
    with pytest.raises(ValidationError, match="400"):
        sample(server, "root ::= nowhere", 1)


def test_a_new_tool_is_in_the_grammar_at_once():
    content = yaml.safe_load(VOCABULARY.read_text())
    content["slots"]["weather"] = {"kind": "choice", "values": ["rain", "fog"]}
    content["tools"].append(
        {
            "name": "sky",
            "description": "Changes the weather.",
            "forms": [{"name": "sky", "call": "{weather}", "result": "sky: {weather}"}],
            "examples": [{"call": "[sky: fog]", "result": "sky: fog"}],
        }
    )
    text = grammar([], Vocabulary.model_validate(content))
    assert 'slot-weather ::= "rain" | "fog"' in text
    assert "tool-sky" in text
    assert "tool-sky" not in grammar([])


def test_the_party_is_read_from_the_system_message():
    system = (
        "Role: Dungeon Master\nParty:\n- Nim (Gnome Bard, Level 1, HP: 8/8)\n- Old Ash (Human Monk, Level 2, HP: 9/9)"
    )
    assert 'slot-name ::= "Nim" | "Old Ash" | "player"' in for_messages([{"role": "system", "content": system}])


@pytest.mark.parametrize(("low", "high"), [(1, 999), (0, 9), (7, 1234), (1, 20), (30, 30), (98, 1005)])
def test_numbers_are_exactly_those_in_the_range(low, high):
    pattern = re.compile(number(low, high).replace('"', "").replace(" ", "") or "$^")
    found = {value for value in range(high * 2 + 20) if pattern.fullmatch(str(value))}
    assert found == set(range(low, high + 1))
