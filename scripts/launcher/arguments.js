/** Which arguments are the launcher's own; all others are forwarded as they are. */
import { Failure } from './failure.js';

/** {forwarded, where, plan, notebook, help, json}; `where` is {where, source} or {}. */
export function parse(argv, env = process.env) {
  const own = { forwarded: [], asked: {}, plan: false, notebook: false, help: false };
  if (env.DM_FORGE_WHERE) own.asked = { where: env.DM_FORGE_WHERE, source: 'DM_FORGE_WHERE' };
  const rest = argv[0] === '--' ? argv.slice(1) : [...argv]; // `pnpm run train -- --plan` passes the dashes on
  while (rest.length > 0) {
    const word = rest.shift();
    if (word === '--plan') own.plan = true;
    else if (word === '--notebook') own.notebook = true;
    else if (word === '--dev') own.forwarded.push('--preset', 'quick');
    else if (word === '--where') own.asked = { where: value(rest), source: '--where' };
    else if (word.startsWith('--where=')) own.asked = { where: word.slice('--where='.length), source: '--where' };
    else {
      if (word === '--help' || word === '-h') own.help = true;
      own.forwarded.push(word);
    }
  }
  own.json = own.forwarded.includes('--json');
  return own;
}

/** What of a command runs on the host alone, or ''. The images hold neither Node.js nor bench/, nor the host's address. */
export function nativeAlone(verb, own) {
  if (own.notebook) return '--notebook';
  if (['bench', 'runtime-check'].includes(verb[0])) return `the verb ${verb[0]}`;
  const machines = own.forwarded.indexOf('--nnodes');
  if (machines >= 0 && own.forwarded[machines + 1] !== '1') return '--nnodes';
  return own.forwarded.find((word) => word === '--runtime-check' || /^--nnodes=(?!1$)/.test(word))?.split('=')[0] ?? '';
}

function value(rest) {
  if (rest.length === 0 || rest[0].startsWith('-')) {
    throw new Failure('--where has no value', { fix: 'give --where native or --where container', code: 2 });
  }
  return rest.shift();
}
