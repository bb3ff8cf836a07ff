"""What a TOOLCALL says: its form, its sums and dice, and where the hit points go."""

from __future__ import annotations

from pipeline.data.checks.turns import Step
from pipeline.data.faults import Faults, shown
from pipeline.data.scenario import Scenario
from pipeline.data.tools import Vocabulary, parse_dice

_MODIFIERS = range(-5, 21)
_PLAYER = "player"


def check_party(scenario: Scenario, faults: Faults) -> None:
    """One to six members of different names, with possible levels and hit points."""
    if not 1 <= len(scenario.party) <= 6:
        faults.add(scenario.line, 1, "party", f"the party has {len(scenario.party)} members", "list one to six members")
    seen: set[str] = set()
    for member in scenario.party:
        if member.name in seen or member.name.lower() in (_PLAYER, "dm", "user"):
            faults.add(member.line, member.column, "party", f"the name {member.name} is taken", "give another name")
        seen.add(member.name)
        if not 0 <= member.hit_points <= member.max_hit_points or not member.max_hit_points:
            what = f"{member.name} has {member.hit_points}/{member.max_hit_points} hit points"
            faults.add(member.line, member.column, "hit-points-range", what)
        if not 1 <= member.level <= 20:
            faults.add(member.line, member.column, "hit-points-range", f"{member.name} has level {member.level}")


def check_results(scenario: Scenario, steps: list[Step], vocabulary: Vocabulary, faults: Faults) -> None:
    """Every result against its call, and hit points over the whole conversation."""
    hit_points = {member.name: (member.hit_points, member.max_hit_points) for member in scenario.party}
    for step in steps:
        known = _names(scenario, step, vocabulary, faults)
        if step.result is None or not step.result.text:
            continue
        values = vocabulary.match_result(step.matched, step.result.text)
        expected = _expected(step, vocabulary)
        line = step.result.line
        if values is None:
            faults.add(line, 1, "result", f"{shown(step.result.text)} does not answer {step.call}", f"write {expected}")
        elif any(values[name] != value for name, value in step.matched.values.items() if name in values):
            faults.add(line, 1, "result", f"{shown(step.result.text)} is about something else than {step.call}",
                       f"write {expected}")  # fmt: skip
        else:
            check_numbers(step.matched.values | values, step.result.text, line, faults)
            if known:
                _track(scenario, step, hit_points, faults)


def check_numbers(values: dict[str, str], text: str, line: int, faults: Faults) -> None:
    """Dice within their range and the right total. `values` are the slots of a call and its result."""
    column = text.find("*") + 1
    if "faces" in values and "dice" in values:
        terms = [int(term) for term in values["faces"].split(" + ")]
        count, sides, bonus = parse_dice(values["dice"])
        dice = terms[:count]
        if terms[count:] != ([bonus] if bonus else []) or len(dice) < count:
            wanted = " + ".join([*["die"] * min(count, 4), *([str(bonus)] if bonus else [])])
            faults.add(line, 1, "die", f"{shown(text)} does not list the dice of {values['dice']}", f"write {wanted}")
            return
        for die in dice:
            if not 1 <= die <= sides:
                faults.add(line, 1, "die", f"a d{sides} shows {die}")
        _total(sum(terms), values, line, column, faults)
    elif "d20" in values and "modifier" in values:
        die, modifier = int(values["d20"]), int(values["modifier"])
        if not 1 <= die <= 20:
            faults.add(line, 1, "die", f"a d20 shows {die}")
        if modifier not in _MODIFIERS:
            faults.add(line, 1, "die", f"the modifier is {modifier}", "use one in -5…20")
        _total(die + modifier, values, line, column, faults)


def _total(total: int, values: dict[str, str], line: int, column: int, faults: Faults) -> None:
    if "total" in values and int(values["total"]) != total:
        faults.add(
            line, column, "sum", f"the total is {values['total']} where the numbers make {total}", f"write *{total}*"
        )


def _expected(step: Step, vocabulary: Vocabulary) -> str:
    shapes = {"d20": "12", "modifier": "3", "faces": "…", "total": "15"}
    values = {name: shapes.get(slot.kind, "…") for name, slot in vocabulary.slots.items()}
    return step.matched.form.write_result(values | step.matched.values)


def _names(scenario: Scenario, step: Step, vocabulary: Vocabulary, faults: Faults) -> bool:
    for slot, value in step.matched.values.items():
        if vocabulary.slots[slot].kind == "party" and value not in (*scenario.names, *vocabulary.slots[slot].values):
            known = ", ".join((*scenario.names, *vocabulary.slots[slot].values))
            faults.add(step.turn.last_line, 1, "name", f"{shown(value)} is nobody in the party", f"use one of: {known}")
            return False
    return True


def _track(scenario: Scenario, step: Step, hit_points: dict[str, tuple[int, int]], faults: Faults) -> None:
    form, values = step.matched.form, step.matched.values
    if form.hit_points == "none" or "name" not in values or "amount" not in values:
        return
    name = values["name"]
    if name == _PLAYER:
        if len(scenario.party) != 1:
            return  # whoever says "I" is one of several: nobody's sheet is known to change
        name = scenario.party[0].name
    now, most = hit_points[name]
    now += int(values["amount"]) if form.hit_points == "gain" else -int(values["amount"])
    if not 0 <= now <= most:
        faults.add(step.turn.last_line, 1, "hit-points", f"{step.call} brings {name} to {now} of {most} hit points")
        now = min(max(now, 0), most)
    hit_points[name] = (now, most)
