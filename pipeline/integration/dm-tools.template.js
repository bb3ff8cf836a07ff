
export const CALL_PATTERN = /\[(\w+):([^\]]+)\]/g;

/** The calls in a reply, in order; what is not in the vocabulary is left out. */
export function findCalls(reply) {
  return [...reply.matchAll(CALL_PATTERN)]
    .map(([, tool, text]) => parse(tool.toLowerCase(), text.trim()))
    .filter((call) => call !== null);
}

/** The reply as players should see it: without commands. */
export function shownText(reply) {
  return reply.replace(CALL_PATTERN, "").trim();
}

/** The user message that tells the model how a call ended. */
export function toolcallMessage(result) {
  return `<TOOLCALL>${result}</TOOLCALL>`;
}

/** The same call for the app's executor, or null where it has none. */
export function toExecutor(call, modifier = () => 0) {
  const form = FORMS.find((known) => known.tool === call.tool && known.form === call.form);
  if (!form) return null;
  const { tool, form: _, ...slots } = call;
  if (form.dice) return { tool: "roll", arguments: slots[form.dice] };
  if (form.d20) return { tool: "roll", arguments: `1d20${signed(modifier(Object.values(slots)[0]))}` };
  if (form.change !== "none") {
    return { tool: form.change === "gain" ? "heal" : "damage", arguments: Object.values(slots).join(", ") };
  }
  if (tool === "inventory") {
    return { tool, arguments: `${slots.name}, ${call.form === "gain" ? "+" : "-"}${slots.item}` };
  }
  return null;
}

function parse(tool, text) {
  for (const form of FORMS) {
    if (form.tool !== tool) continue;
    const found = new RegExp(form.pattern, "u").exec(text);
    if (found && Object.entries(form.bounds).every(([name, bounds]) => holds(bounds, found.groups[name]))) {
      const slots = { ...found.groups };
      for (const name of form.numbers) slots[name] = Number(slots[name]);
      return { tool, form: form.form, ...slots };
    }
  }
  return null;
}

/** Whether a value that has its slot's shape lies in its bounds; text is counted in characters, not in UTF-16 units. */
function holds(bounds, value) {
  if ("sides" in bounds) {
    const [, count, sides, bonus] = /^(\d+)d(\d+)(.*)$/.exec(value);
    return Number(count) <= bounds.count && bounds.sides.includes(Number(sides)) && Math.abs(bonus) <= bounds.bonus;
  }
  if ("length" in bounds) return [...value].length <= bounds.length;
  return bounds.minimum <= Number(value) && Number(value) <= bounds.maximum;
}

function signed(value) {
  return value === 0 ? "" : value > 0 ? `+${value}` : `${value}`;
}
