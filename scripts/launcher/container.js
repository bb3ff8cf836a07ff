/** Run in a container: the argument vectors are pure functions of what is asked; nothing runs as root or writable. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { run } from './child.js';
import { Failure } from './failure.js';
import { imageDigest } from './image.js';
import { pickNetwork } from './network.js';
import { passedOn, siteOf } from './site.js';

const HOME = '/dm-forge'; // where the image holds the project
const ENGINE_FAILED = 125; // docker run: the container was never started

export function imageFor(device) {
  return `dm-forge:runtime-${device === 'cuda' ? 'cuda' : 'cpu'}`;
}

/** `docker buildx bake …`: leave is given to read the files of the site, and no other. */
export function bakeArguments(args, site = {}) {
  const allowed = [site.ca, site.wheels].filter(Boolean).map((file) => `--allow=fs.read=${file}`);
  return ['buildx', 'bake', ...allowed, ...args];
}

/** Bake with what this machine's own pip needs to reach its packages; gives the exit code. */
export function bake(root, args, { site = siteOf(), env = process.env } = {}) {
  const found = { ...(site.ca && { CA_BUNDLE: site.ca }), ...(site.wheels && { WHEELS: site.wheels }) };
  return run('docker', bakeArguments(args, site), { cwd: root, env: { ...found, ...env } });
}

/** `docker run …` for one verb. `root` is absolute; `uid` and `gid` are the caller's, so that files are theirs. */
export function runArguments({ device, root, uid, gid, network, terminal, ca, passed = [], args }) {
  const mount = (source, target, readOnly) => [
    '--mount',
    `type=bind,source=${source},target=${target}${readOnly ? ',readonly' : ''}`,
  ];
  const folder = (name, readOnly) => mount(path.join(root, name), `${HOME}/${name}`, readOnly);
  const certificates = ['PIP_CERT', 'SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE'].map((name) => `--env=${name}=/run/ca.pem`);
  return [
    'run',
    '--rm',
    '--interactive',
    ...(terminal ? ['--tty'] : []),
    ...(device === 'cuda' ? ['--gpus', 'all', '--shm-size=8g'] : []), // processes on several GPUs share memory
    '--read-only',
    '--cap-drop=ALL',
    '--security-opt=no-new-privileges',
    `--network=${network}`,
    `--user=${uid}:${gid}`,
    '--tmpfs=/tmp:rw,exec,nosuid,nodev',
    ...passed.map((name) => `--env=${name}`),
    ...(ca ? [...mount(ca, '/run/ca.pem', true), ...certificates] : []),
    ...folder('training_data', args[0] !== 'data' || args[1] !== 'convert'),
    ...folder('configs', true),
    ...folder('artifacts', false),
    ...folder('assets', false),
    imageFor(device),
    ...args,
  ];
}

/** Build the image unless it is there already, and run the verb in it. */
export async function runInContainer(root, device, args, env = process.env) {
  for (const folder of ['artifacts', 'assets']) mkdirSync(path.join(root, folder), { recursive: true });
  const { network, reason } = pickNetwork(args, device, root, cachedBases(root), env.DM_FORGE_NETWORK);
  process.stderr.write(`image ${imageFor(device)}, network ${network}: ${reason}\n`);
  const site = siteOf(env);
  await requireImage(root, device, site, env);
  const terminal = process.stdin.isTTY && process.stdout.isTTY;
  const user = { uid: process.getuid(), gid: process.getgid() };
  const online = network === 'none' ? {} : { ca: site.ca, passed: passedOn(env) };
  const code = await run('docker', runArguments({ device, root, ...user, network, terminal, ...online, args }), {
    cwd: root,
  });
  if (code !== ENGINE_FAILED) return code;
  throw new Failure('Docker could not start the container: its message is above', {
    fix:
      device === 'cuda'
        ? 'if it cannot select a device driver, install nvidia-container-toolkit, run `nvidia-ctk runtime configure --runtime=docker` and restart Docker; or run with --where native'
        : 'see Docker’s message, or run with --where native',
  });
}

/** The image is known again by the digest of what it is made of: nothing is built, or asked of a network, twice. */
async function requireImage(root, device, site, env) {
  const image = imageFor(device);
  const target = image.split(':')[1];
  const inputs = imageDigest(root, env);
  const label = ['image', 'inspect', '--format', '{{index .Config.Labels "dm-forge.inputs"}}', image];
  if (spawnSync('docker', label, { encoding: 'utf8' }).stdout?.trim() === inputs) return;
  const args = ['--load', '--provenance=false', '--sbom=false', '--set', `${target}.tags=${image}`, target];
  const built = await bake(root, args, { site, env: { ...env, INPUTS: inputs } });
  if (built === 0) return;
  throw new Failure(`the image ${image} could not be built`, {
    where: `docker ${bakeArguments(args, site).join(' ')}`,
    fix: 'see Docker’s message above, or run with --where native',
    code: built > 128 ? built : 1,
  });
}

function cachedBases(root) {
  const folder = path.join(root, 'artifacts', 'cache', 'bases');
  return existsSync(folder) ? readdirSync(folder).filter((name) => !/^\.|\.json$/.test(name)) : [];
}
