/** Run in a container: the argument vectors are pure functions of what is asked; nothing runs as root or writable. */
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { run } from './child.js';
import { Failure } from './failure.js';

const NETWORKS = ['none', 'bridge'];
const HOME = '/dm-forge'; // where the image holds the project

export function imageFor(device) {
  return `dm-forge:runtime-${device === 'cuda' ? 'cuda' : 'cpu'}`;
}

/** `docker buildx bake …`: the bake targets are named like the Dockerfile's stages. */
export function buildArguments(device) {
  const target = imageFor(device).split(':')[1];
  return ['buildx', 'bake', '--load', '--set', `${target}.tags=${imageFor(device)}`, target];
}

/** `docker run …` for one verb. `folders` are absolute; `uid` and `gid` are the caller's, so that files are theirs. */
export function runArguments({ device, root, uid, gid, network, terminal, environment = {}, args }) {
  const mount = (name, readOnly) => [
    '--mount',
    `type=bind,source=${path.join(root, name)},target=${HOME}/${name}${readOnly ? ',readonly' : ''}`,
  ];
  return [
    'run',
    '--rm',
    '--init',
    ...(terminal ? ['--interactive', '--tty'] : []),
    ...(device === 'cuda' ? ['--gpus', 'all'] : []),
    '--read-only',
    '--cap-drop=ALL',
    '--security-opt=no-new-privileges',
    `--network=${network}`,
    `--user=${uid}:${gid}`,
    '--tmpfs=/tmp:rw,exec,nosuid,nodev',
    '--env=HOME=/tmp',
    ...Object.entries(environment).map(([name, value]) => `--env=${name}=${value}`),
    ...mount('training_data', true),
    ...mount('configs', true),
    ...mount('artifacts', false),
    ...mount('assets', false),
    imageFor(device),
    ...args,
  ];
}

/** The network is closed unless a base model has yet to be fetched; DM_FORGE_NETWORK overrides. */
export function pickNetwork(bases, asked) {
  if (asked) {
    if (!NETWORKS.includes(asked)) {
      throw new Failure(`DM_FORGE_NETWORK is ${JSON.stringify(asked)}`, {
        fix: `give one of: ${NETWORKS.join(', ')}`,
        code: 2,
      });
    }
    return { network: asked, reason: 'DM_FORGE_NETWORK says so' };
  }
  return bases.length > 0
    ? { network: 'none', reason: `the cache has a base model (${bases.join(', ')})` }
    : { network: 'bridge', reason: 'a base model has to be fetched' };
}

/** Build the image (Docker's cache makes the second time quick) and run the verb in it. */
export async function runInContainer(root, device, args, env = process.env) {
  for (const folder of ['artifacts', 'assets']) mkdirSync(path.join(root, folder), { recursive: true });
  const { network, reason } = pickNetwork(cachedBases(root), env.DM_FORGE_NETWORK);
  process.stderr.write(`image ${imageFor(device)}, network ${network}: ${reason}\n`);
  const built = await run('docker', buildArguments(device), { cwd: root });
  if (built !== 0) {
    throw new Failure(`the image ${imageFor(device)} could not be built`, {
      where: `docker ${buildArguments(device).join(' ')}`,
      fix: 'see Docker’s message above, or run with --where native',
      code: built > 128 ? built : 1,
    });
  }
  const terminal = process.stdin.isTTY && process.stdout.isTTY;
  const user = { uid: process.getuid(), gid: process.getgid() };
  return run('docker', runArguments({ device, root, ...user, network, terminal, args }), { cwd: root });
}

function cachedBases(root) {
  const folder = path.join(root, 'artifacts', 'cache', 'bases');
  return existsSync(folder) ? readdirSync(folder).filter((name) => !name.startsWith('.')) : [];
}
