"""Every rule the checker knows: how grave it is, why it exists, and how its faults are mended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Rule:
    why: str
    fix: str
    severity: Literal["error", "warning"] = "error"


MEMBER_FORM = "- Name (Race Class, Level 5, HP: 28/28)"

RULES: dict[str, Rule] = {
    # the file
    "unreadable": Rule("it cannot be checked", "remove it, or make it a readable file"),
    "symlink": Rule("what lies outside the data folder is not training data", "copy the file in"),
    "size": Rule("reading on could exhaust the memory, and no scenario is that large", "split it up"),
    "nul": Rule("this is not a text file", "save it as plain UTF-8"),
    "encoding": Rule("the text cannot be read for certain", "save the file as UTF-8"),
    "bom": Rule("the mark would become part of the first heading", "save the file as UTF-8 without a byte-order mark"),
    "crlf": Rule("digests and tokens would differ between machines", "save the file with LF line ends"),
    "empty": Rule("there is nothing to train on", "write a scenario, or remove the file"),
    "more": Rule("a wholly broken file is not worth a longer list", "mend those and check again"),
    "place": Rule("the folder's name is the scenario's category", "move the file into a category's folder"),
    # structure
    "order": Rule("a scenario is # SYSTEM, # CONVERSATION, then its turns", "put the sections into that order"),
    "heading": Rule(
        "only # SYSTEM, # CONVERSATION, ## User, ## DM and ## TOOLCALL are, and text holds no headings",
        "use one of those, or take the # away; data:convert reads other dialects",
    ),
    "system": Rule("the model must know role, world, place and party, each said once", "complete the SYSTEM block"),
    "party": Rule("name, race, class, level and hit points must be known", f"write `{MEMBER_FORM}`"),
    "hit-points-range": Rule("hit points lie in 0…max and levels in 1…20", "correct the numbers"),
    "turns": Rule("turns alternate: ## User, ## DM, and ## TOOLCALL only after a call", "add, join or reorder turns"),
    "empty-turn": Rule("a turn says something", "write it, or remove the heading"),
    "ending": Rule("a conversation ends when the DM has told what happened", "add a ## DM turn"),
    "length": Rule("a scenario has three to six user turns", "add or remove turns"),
    "long": Rule("the phone's context is 2,048 tokens", "shorten it"),
    # text
    "control": Rule("the tokeniser gives it an unpredictable token", "delete the character"),
    "template": Rule("a template token in the text would end the turn", "write it in words"),
    "bracket": Rule("the app takes brackets for commands", "use round ones, or write a call of the vocabulary"),
    # calls
    "calls": Rule("the app executes one command a reply", "split the turn, or keep the call that comes first"),
    "call-place": Rule("a call stands alone on the turn's last line", "move it there"),
    "call-form": Rule("the canonical form is [tool: arguments]", "write it so"),
    "speaker": Rule("only the DM calls tools", "take the call out of this turn"),
    "no-result": Rule("a call is answered by ## TOOLCALL", "add ## TOOLCALL and the DM's next turn"),
    "no-call": Rule("a TOOLCALL answers a call on the DM's last line", "add the call, or remove the section"),
    "tool": Rule("the app does not know it", "use a tool of tools.yaml, or add it there"),
    "argument": Rule("the app could not execute it", "write the arguments as tools.yaml says"),
    "name": Rule("only party members and `player` have sheets", "use a name of the SYSTEM block"),
    # results
    "result": Rule("the model learns to read what the app writes", "write the result in the vocabulary's form"),
    "sum": Rule("the model would learn wrong sums", "correct the total"),
    "die": Rule("no such die can be thrown", "correct the number"),
    "hit-points": Rule("hit points stay in 0…max", "change the amount or the member's hit points"),
    # policy
    "policy": Rule("examples that contradict the policy teach guessing", "change the call or the line", "warning"),
    "unsaid": Rule(
        "the model cannot know what no turn before has said", "say it in an earlier turn, or change the call", "warning"
    ),
    "whose": Rule(
        "NAME is who the line names; who says I is `player`, or the one hero of a party of one",
        "name the one who acts",
        "warning",
    ),
    # drills
    "drill": Rule("a drill is a player's line with the DM's line below it", "see training_data/README.md"),
    "drill-section": Rule("a section is `## [tool: arguments]`, `## [tool]` or `## none`", "name the call that is due"),
    "drill-call": Rule("every line needs the call that is due", "write it as the last nested bullet"),
    "placeholder": Rule("only {hero} and {ally} are filled in", "use one of those, or take the braces away"),
    "outcomes": Rule("a call's result is followed by what happens", "add ### Success and ### Failure, or ### Outcome"),
    # paraphrases
    "paraphrase": Rule(
        "other words must stand for a line that is there, and leave the same call due", "see training_data/README.md"
    ),
    # the corpus
    "duplicate": Rule("a text seen twice counts twice", "rewrite one of the two"),
    "leak": Rule("the model would be examined on what it was taught", "rewrite one of the two"),
    "imbalance": Rule("the model prefers what it sees most", "write more of the rarer kind", "warning"),
    # other dialects
    "dialect": Rule("it is outside the canonical format", "see data:convert's output", "warning"),
    "outside": Rule(
        "the vocabulary has no such command, so it is kept as plain text", "remove or replace it", "warning"
    ),
}
