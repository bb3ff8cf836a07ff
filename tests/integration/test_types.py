"""The app's functions, run by Node, understand every example of the vocabulary."""

import json
import shutil
import subprocess

import pytest
import yaml

from pipeline.data.tools import VOCABULARY, Vocabulary, find_calls, load_vocabulary
from pipeline.integration import types

NODE = shutil.which("node")
EXAMPLES = [example.call for tool in load_vocabulary().tools for example in tool.examples]


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    types.write(folder)
    (folder / "package.json").write_text('{"type": "module"}')

    def run(expression):
        script = f'import * as dm from "./dm-tools.js"; console.log(JSON.stringify({expression}));'
        command = [str(NODE), "--input-type=module", "--eval", script]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return run


needs_node = pytest.mark.skipif(NODE is None, reason="there is no Node on this machine")


@needs_node
def test_every_example_is_found_and_typed(ask):
    found = ask(f"{json.dumps(EXAMPLES)}.map((text) => dm.findCalls(`Dust. ${{text}}`))")
    assert [len(calls) for calls in found] == [1] * len(EXAMPLES)
    assert {calls[0]["tool"] for calls in found} == set(load_vocabulary().names)


@needs_node
@pytest.mark.parametrize(
    ("call", "command"),
    [
        ("[roll: stealth]", {"tool": "roll", "arguments": "1d20+3"}),
        ("[roll: dexterity save]", {"tool": "roll", "arguments": "1d20+3"}),
        ("[check: strength]", {"tool": "roll", "arguments": "1d20+3"}),
        ("[roll: 2d6+3]", {"tool": "roll", "arguments": "2d6+3"}),
        ("[health: Elara, -5]", {"tool": "damage", "arguments": "Elara, 5"}),
        ("[health: player, +7]", {"tool": "heal", "arguments": "player, 7"}),
        ("[inventory: player, -torch]", {"tool": "inventory", "arguments": "player, -torch"}),
        ("[spellcast: Elara, Fire Bolt]", None),
    ],
)
def test_our_calls_become_what_the_executor_takes(ask, call, command):
    assert ask(f"dm.toExecutor(dm.findCalls({json.dumps(call)})[0], () => 3)") == command


@needs_node
def test_strange_calls_are_left_out_and_players_see_no_commands(ask):
    assert ask('dm.findCalls("[transition: campfire] [roll: sneakiness] [note]")') == []
    assert ask('dm.shownText("It is dark.\\n\\n[roll: stealth]")') == "It is dark."
    assert ask('dm.toolcallMessage("stealth: 1")') == "<TOOLCALL>stealth: 1</TOOLCALL>"


CALLS = [
    *EXAMPLES,
    *(
        f"[roll: {dice}]"
        for dice in ("20d6", "21d6", "9999d7", "1d7", "1d100+30", "1d20-30", "1d20-31", "2d6+999", "0d6")
    ),
    *(f"[health: Elara, {change}]" for change in ("+1", "+0", "-0", "-999", "-1000", "+999999999", "5", "+07")),
    *(f"[spellcast: Elara, {'x' * length}]" for length in (60, 61)),
    *(f"[inventory: Elara, +{'𝔵' * length}]" for length in (60, 61)),  # two UTF-16 units each
    "[health: , -5]",
    "[check: stealth]",
]


@needs_node
def test_javascript_accepts_the_calls_that_python_accepts(ask):
    known = load_vocabulary()
    ours = [known.match(find_calls(call)[0]) is not None for call in CALLS]
    assert ask(f"{json.dumps(CALLS)}.map((text) => dm.findCalls(text).length === 1)") == ours
    assert ours.count(False) == 16


def test_a_new_tool_is_in_types_and_functions_at_once():
    content = yaml.safe_load(VOCABULARY.read_text())
    content["tools"].append(
        {
            "name": "rest",
            "description": "Somebody sleeps.",
            "forms": [{"name": "rest", "call": "{name}", "result": "rest: {name} rests"}],
            "examples": [{"call": "[rest: player]", "result": "rest: player rests"}],
        }
    )
    known = Vocabulary.model_validate(content)
    assert '{ tool: "rest"; form: "rest"; name: string }' in types.declarations(known)
    assert '"tool": "rest"' in types.functions(known)
    assert "rest" not in types.declarations().split("ToolName")[0].split("Call =")[1]
