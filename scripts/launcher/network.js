/** Whether a container needs the network: only where a base model has still to be fetched. */
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { Failure } from './failure.js';

const NETWORKS = ['none', 'bridge'];

/** {network, reason}; `bases` are the names of the cache's base folders, `asked` is DM_FORGE_NETWORK. */
export function pickNetwork(args, device, root, bases, asked) {
  if (asked) {
    if (!NETWORKS.includes(asked)) {
      throw new Failure(`DM_FORGE_NETWORK is ${JSON.stringify(asked)}`, {
        fix: `give one of: ${NETWORKS.join(', ')}`,
        code: 2,
      });
    }
    return { network: asked, reason: 'DM_FORGE_NETWORK says so' };
  }
  if (!['train', 'setup'].includes(args[0])) return { network: 'none', reason: `${args[0]} fetches nothing` };
  const base = wantedBase(args, root);
  // `auto` on a GPU may choose a base from the hub; on a CPU it takes what is embedded, which is what the cache has.
  const stem = base.replace('/', '--').split('@')[0];
  const found = bases.find((name) => (base === 'auto' ? device !== 'cuda' : name.startsWith(`${stem}-`)));
  return found
    ? { network: 'none', reason: `the cache has the base model (${found})` }
    : { network: 'bridge', reason: `the base model (${base}) may have to be fetched` };
}

/** `--base`, else what the config or preset says. */
function wantedBase(args, root) {
  const base = option(args, '--base');
  if (base) return base;
  const preset = option(args, '--preset');
  const file = option(args, '--config') ?? `configs/${!preset || preset === 'default' ? 'train' : preset}.yaml`;
  const full = path.resolve(root, file);
  const text = existsSync(full) ? readFileSync(full, 'utf8') : '';
  return /^base:\s*["']?([^\s"'#]+)/m.exec(text)?.[1] ?? 'auto';
}

function option(args, name) {
  const index = args.indexOf(name);
  if (index >= 0) return args[index + 1];
  return args.find((word) => word.startsWith(`${name}=`))?.slice(name.length + 1);
}
