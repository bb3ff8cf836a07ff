/**
 * The launcher: look at the machine, plan, make the environment, and hand everything over to `python -m pipeline`.
 * Usage: node scripts/launcher/run.js VERB [ARGUMENT…]
 */
import { existsSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { nativeAlone, parse } from './arguments.js';
import { run } from './child.js';
import { runInContainer } from './container.js';
import { exitWith, Failure } from './failure.js';
import { detect } from './host.js';
import { prepare, venvOf } from './native.js';
import { openNotebook } from './notebook.js';
import { makePlan } from './plan.js';

export const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..');

const USAGE = `The launcher's own options (all others go to the verb):
  --plan                      print what would run, where and why, and stop
  --where native|container    where to run; DM_FORGE_WHERE says the same
  --notebook                  open the training notebook instead (train only)
  --dev                       short for --preset quick (train only)
Environment: DM_FORGE_PYTHON (interpreter), DM_FORGE_VENV (folder of the environment), DM_FORGE_NETWORK (container).
`;

/** Run a verb such as ['train'] or ['data', 'check'] and give its exit code. */
export async function launch(verb, argv, root = ROOT) {
  const own = parse(argv);
  if (own.help) return help(verb, own, root);
  const native = nativeAlone(verb, own);
  const asked = native && !own.asked.where ? { where: 'native', source: native } : own.asked;
  const facts = detect({ root, docker: own.plan || asked.where === 'container', python: own.plan });
  const plan = makePlan(facts, asked);
  if (own.plan) return show(plan, facts, verb, own, root);
  if (plan.refusal) throw new Failure(plan.refusal.what, plan.refusal);
  if (native && plan.where === 'container') {
    throw new Failure(`${native} works on the host alone`, { fix: 'add --where native', code: 2 });
  }
  if (plan.where === 'container') return runInContainer(root, plan.device, [...verb, ...own.forwarded]);
  if (own.notebook) return openNotebook(root, plan.lock);
  const { python } = await prepare(root, [plan.lock]);
  return run(python, ['-m', 'pipeline', ...verb, ...own.forwarded], { cwd: root });
}

/** The device's plan, for verbs that always run natively (tests, lint). Throws a Failure where nothing can run. */
export function nativePlan(root = ROOT) {
  const plan = makePlan(detect({ root }), { where: 'native', source: 'this command' });
  if (plan.refusal) throw new Failure(plan.refusal.what, plan.refusal);
  return plan;
}

async function help(verb, own, root) {
  const { python } = venvOf(root);
  const ready = existsSync(python);
  const more = ready
    ? ''
    : '\nThe verb’s own options follow here once the environment exists: it is made on the first run.\n';
  process.stdout.write(`pnpm run ${verb.join(':')}\n\n${USAGE}${more}`);
  if (!ready) return 0;
  process.stdout.write('\n');
  return run(python, ['-m', 'pipeline', ...verb, ...own.forwarded], { cwd: root });
}

function show(plan, facts, verb, own, root) {
  const command = ['python', '-m', 'pipeline', ...verb, ...own.forwarded].join(' ');
  if (own.json) {
    process.stdout.write(`${JSON.stringify({ command, ...plan, facts }, null, 2)}\n`);
    return plan.refusal ? plan.refusal.code : 0;
  }
  const rows = plan.refusal
    ? [
        ['refused', plan.refusal.what],
        ['to do', plan.refusal.fix],
      ]
    : [
        ['command', command],
        ['where', plan.where],
        ['device', plan.device],
        ['lock', `requirements/${plan.lock}.txt`],
        ...(plan.where === 'native' ? [['venv', venvState(root)]] : []),
        ...plan.reasons.map((reason) => ['why', reason]),
      ];
  for (const [name, { value, reason }] of Object.entries(facts).filter(([, fact]) => fact.reason)) {
    rows.push(['fact', `${name} = ${value}: ${reason}`]);
  }
  for (const { command: name, version, fault } of facts.pythons)
    rows.push(['python', `${name}: ${fault ?? version.join('.')}`]);
  process.stdout.write(`${rows.map(([name, text]) => `${name.padEnd(8)} ${text}`).join('\n')}\n`);
  return plan.refusal ? plan.refusal.code : 0;
}

function venvState(root) {
  const { folder, python } = venvOf(root);
  return existsSync(python) ? folder : `${folder}, to be made`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const words = process.argv.slice(2);
  const verb = words.splice(0, words[0] === 'data' ? 2 : 1);
  await exitWith(() => {
    if (verb.length === 0) throw new Failure('no verb was given', { fix: 'see the scripts in package.json', code: 2 });
    return launch(verb, words);
  });
}
