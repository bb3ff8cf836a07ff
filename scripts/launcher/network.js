/** Whether a container needs the network: only where a base model has still to be fetched. */
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { Failure } from './failure.js';

const NETWORKS = ['none', 'bridge'];
const EMBEDDED = 'smollm2-135m'; // what `auto` is on a CPU, as pipeline/bases/catalog.py says (a test compares)

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
  const stems = stemsOf(base, device, root);
  const found = bases.find((name) => stems.some((stem) => name.startsWith(stem)));
  return found
    ? { network: 'none', reason: `the cache has the base model (${found})` }
    : { network: 'bridge', reason: `the base model (${base}) may have to be fetched` };
}

/** How the cache's folder of a base may begin: after its name in the catalogue, or after the hub's and its commit. */
function stemsOf(base, device, root) {
  if (base === 'auto') return device === 'cuda' ? [] : [`${EMBEDDED}-`]; // on a GPU it may be one from the hub
  const [id, commit = ''] = base.split('@');
  if (id.includes('/')) return [`${id.replace('/', '--')}-${commit.slice(0, 12)}`];
  const catalogue = readIfThere(path.join(root, 'pipeline', 'bases', 'catalog.yaml'));
  const hub = new RegExp(`^ {2}${id.replaceAll('.', '\\.')}:\n {4}hub: (\\S+)\n {4}revision: (\\w{12})`, 'm').exec(
    catalogue,
  );
  return [`${id}-`, ...(hub ? [`${hub[1].replace('/', '--')}-${hub[2]}`] : [])];
}

/** `--base`, else what `--set`, the config or the preset says. */
function wantedBase(args, root) {
  const base = option(args, '--base') ?? args.findLast((word) => /^(--set=)?base=/.test(word))?.split('base=')[1];
  if (base) return base;
  const preset = option(args, '--preset');
  const file = option(args, '--config') ?? `configs/${!preset || preset === 'default' ? 'train' : preset}.yaml`;
  const text = readIfThere(path.resolve(root, file));
  return /^base:\s*["']?([^\s"'#]+)/m.exec(text)?.[1] ?? 'auto';
}

function readIfThere(file) {
  return existsSync(file) ? readFileSync(file, 'utf8') : '';
}

function option(args, name) {
  const index = args.indexOf(name);
  if (index >= 0) return args[index + 1];
  return args.find((word) => word.startsWith(`${name}=`))?.slice(name.length + 1);
}
