"""What the app's TypeScript needs to understand our calls: dm-tools.d.ts (types) and dm-tools.js (their functions).

Both are made from the vocabulary. The app's own executor knows `roll` with dice, `damage`, `heal` and `inventory`; the
function `toExecutor` turns our calls into those, and gives null for what the executor cannot do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.data.tools import Form, Slot, Vocabulary, compile_template, load_vocabulary

TYPES, FUNCTIONS = "dm-tools.d.ts", "dm-tools.js"
_NOTE = "// Made by dm-forge from training_data/tools.yaml. Do not edit: the next promotion writes it again.\n"
_SCRIPT = Path(__file__).with_name("dm-tools.template.js")
_DECLARATIONS = """
export type Call = {calls};
export type ToolName = Call["tool"];
export declare const supportedTools: readonly ToolName[];

/** The app's own pattern for commands in a reply. */
export declare const CALL_PATTERN: RegExp;
/** The calls in a reply, in order; what is not in the vocabulary is left out. */
export declare function findCalls(reply: string): Call[];
/** The reply as players should see it: without commands. */
export declare function shownText(reply: string): string;
/** The user message that tells the model how a call ended. */
export declare function toolcallMessage(result: string): string;

export interface ExecutorCommand {{
  tool: "roll" | "damage" | "heal" | "inventory";
  arguments: string;
}}
/** What is added to a d20 for a skill, an ability, a save, `attack` or `initiative`; from the character's sheet. */
export type Modifier = (what: string) => number;
/** The same call for the app's executor, or null where it has none (spells: the narration carries them). */
export declare function toExecutor(call: Call, modifier?: Modifier): ExecutorCommand | null;
"""


def declarations(vocabulary: Vocabulary | None = None) -> str:
    """The text of dm-tools.d.ts: one type for each form of each call, and the functions' signatures."""
    known = vocabulary or load_vocabulary()
    named = {name: slot for name, slot in known.slots.items() if slot.kind == "choice" and slot.values}
    types = [f"export type {_title(name)} = {_union(slot.values)};" for name, slot in named.items()]
    calls = [_call_type(tool.name, form, known) for tool in known.tools for form in tool.forms]
    union = "\n  | " + "\n  | ".join(calls)
    return _NOTE + "\n".join(types) + "\n" + _DECLARATIONS.format(calls=union)


def functions(vocabulary: Vocabulary | None = None) -> str:
    """The text of dm-tools.js, an ES module without dependencies."""
    known = vocabulary or load_vocabulary()
    forms = [
        {
            "tool": tool.name,
            "form": form.name,
            "pattern": f"^{_javascript(compile_template(form.call, known).pattern)}$",
            "numbers": [slot for slot in form.slots if known.slots[slot].kind == "integer"],
            "change": form.hit_points,
            "d20": any(known.slots[slot].kind == "d20" for slot in _result_slots(form, known)),
            "dice": next((slot for slot in form.slots if known.slots[slot].kind == "dice"), None),
            "bounds": {slot: bounds for slot in form.slots if (bounds := _bounds(known.slots[slot]))},
        }
        for tool in known.tools
        for form in tool.forms
    ]
    table = ",\n".join("  " + json.dumps(form) for form in forms)
    header = f"const FORMS = [\n{table},\n];\n\nexport const supportedTools = {json.dumps(list(known.names))};\n"
    return _NOTE + header + _SCRIPT.read_text(encoding="utf-8")


def write(folder: Path) -> tuple[Path, Path]:
    """Put both files into the app's folder."""
    files.write_text(folder / TYPES, declarations())
    files.write_text(folder / FUNCTIONS, functions())
    return folder / TYPES, folder / FUNCTIONS


def _call_type(tool: str, form: Form, vocabulary: Vocabulary) -> str:
    slots = [f"{slot}: {_slot_type(slot, vocabulary.slots[slot])}" for slot in form.slots]
    return "{ " + "; ".join([f'tool: "{tool}"', f'form: "{form.name}"', *slots]) + " }"


def _slot_type(name: str, slot: Slot) -> str:
    if slot.kind == "choice":
        return _title(name)
    if slot.kind == "dice":
        return "`${number}d${number}` | `${number}d${number}+${number}` | `${number}d${number}-${number}`"
    return "number" if slot.kind == "integer" else "string"


def _bounds(slot: Slot) -> dict[str, Any]:
    """What a value must keep to beyond its shape, as `holds` in the template checks it."""
    if slot.kind == "integer":
        return {"minimum": slot.minimum, "maximum": slot.maximum}
    if slot.kind == "text":
        return {"length": slot.length}
    return {"count": slot.count, "sides": slot.sides, "bonus": slot.bonus} if slot.kind == "dice" else {}


def _result_slots(form: Form, vocabulary: Vocabulary) -> list[str]:
    return [name for name in vocabulary.slots if f"{{{name}}}" in form.result]


def _javascript(pattern: str) -> str:
    """Python's named groups and escapes as a JavaScript `u` pattern takes them."""
    text = pattern.replace("(?P<", "(?<").replace("[^\\W_]", "[\\p{L}\\p{N}]")
    for char in " -#&~,":
        text = text.replace(f"\\{char}", char) if char != "-" else text.replace("\\-", "-")
    return text


def _title(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _union(values: Iterable[str]) -> str:
    return " | ".join(json.dumps(value) for value in values)
