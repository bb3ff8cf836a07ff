/** Run natively: find Python, make the venv, install the lock once, and hand over. */
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { run } from './child.js';
import { Failure, interrupted } from './failure.js';
import { findPythons } from './host.js';
import { install } from './install.js';
import { mergeLocks, readLock, SPACE } from './lock.js';
import { takeTurn } from './turn.js';

const OLDEST = [3, 11];
const TOO_NEW = [3, 14];

/** The venv's folder and its interpreter; nothing is made. */
export function venvOf(root, env = process.env) {
  const folder = path.resolve(root, env.DM_FORGE_VENV || '.venv');
  return { folder, python: path.join(folder, 'bin', 'python') };
}

/** Make sure that the venv is there and holds the locks named; does nothing, offline too, when it already does. */
export async function prepare(root, lockNames, { env = process.env, space = freeSpace } = {}) {
  const venv = venvOf(root, env);
  if (missing(root, venv, lockNames).wanted.length > 0) {
    const turn = path.join(root, 'artifacts', 'logs', 'environment.lock');
    await takeTurn(turn, () => complete(root, venv, lockNames, env, space));
  }
  return venv;
}

/** Whether the venv works, and the locks that it does not hold. */
function missing(root, venv, lockNames) {
  const healthy = isHealthy(venv);
  const locks = lockNames.map((name) => readLock(root, name));
  return { healthy, wanted: locks.filter((lock) => !healthy || !isInstalled(root, venv, lock)) };
}

async function complete(root, venv, lockNames, env, space) {
  const { healthy, wanted } = missing(root, venv, lockNames);
  const needed = wanted.reduce((sum, lock) => sum + (SPACE[lock.name] ?? SPACE.dev), 0);
  requireSpace(venv.folder, needed, space);
  if (!healthy) await makeVenv(venv, choosePython(findPythons(env), env), env);
  for (const lock of wanted) await installLock(root, venv, lock, env, space);
}

/** The first interpreter new enough and whole. Throws a Failure that lists everything that was found. */
export function choosePython(found, env = process.env) {
  const fit = found.find((python) => !faultOf(python));
  if (fit) return fit;
  const list = found.map((python) => `${python.command}: ${faultOf(python)}`).join('\n  ');
  const incomplete = found.find((python) => isSupported(python) && python.missing.length > 0);
  if (incomplete) {
    const version = incomplete.version.slice(0, 2).join('.');
    throw new Failure(`Python ${version} is here without its ${incomplete.missing.join(' and ')} module:\n  ${list}`, {
      where: incomplete.path,
      fix: `Debian, Ubuntu: apt-get install python${version}-venv (or python3-venv); then run again`,
    });
  }
  const source = env.DM_FORGE_PYTHON ? 'DM_FORGE_PYTHON' : 'PATH';
  throw new Failure(list ? `no Python from 3.11 to 3.13 was found:\n  ${list}` : 'no Python was found', {
    where: source,
    fix: 'install Python 3.11, 3.12 or 3.13 (Debian 12: apt-get install python3 python3-venv; macOS: brew install python@3.12), or name one in DM_FORGE_PYTHON',
  });
}

function faultOf(python) {
  if (python.fault) return python.fault;
  const version = python.version.join('.');
  if (compare(python.version, OLDEST) < 0) return `${version} is too old`;
  if (compare(python.version, TOO_NEW) >= 0) return `${version} is newer than the locked packages support`;
  return python.missing.length > 0 ? `${version} lacks ${python.missing.join(', ')}` : '';
}

function isSupported(python) {
  return !python.fault && compare(python.version, OLDEST) >= 0 && compare(python.version, TOO_NEW) < 0;
}

function compare(version, other) {
  return version[0] - other[0] || version[1] - other[1];
}

/** A venv whose interpreter starts and has pip; one left half-made by a kill is not. */
function isHealthy(venv) {
  if (!existsSync(venv.python)) return false;
  const folders = [
    '-c',
    'import sys, importlib.util as u; sys.exit(not u.find_spec("pip") or sys.version_info < (3, 11))',
  ];
  return spawnSync(venv.python, folders, { timeout: 30_000 }).status === 0;
}

async function makeVenv(venv, python, env) {
  if (existsSync(venv.folder) && readdirSync(venv.folder).length > 0 && !looksLikeVenv(venv.folder)) {
    throw new Failure(`${venv.folder} is in the way: it is not a Python environment`, {
      fix: 'move it, or set DM_FORGE_VENV',
    });
  }
  process.stderr.write(`making ${venv.folder} with ${python.command} ${python.version.join('.')}\n`);
  const lines = [];
  const code = await run(python.path, ['-m', 'venv', '--clear', venv.folder], {
    env,
    onLine: (line) => lines.push(line),
  });
  if (code > 128) throw interrupted(code);
  if (code !== 0) {
    throw new Failure(`the Python environment could not be made:\n  ${lines.slice(-4).join('\n  ')}`, {
      where: `${python.path} -m venv ${venv.folder}`,
      fix: `Debian, Ubuntu: apt-get install python${python.version.slice(0, 2).join('.')}-venv; then run again`,
    });
  }
}

function looksLikeVenv(folder) {
  const known = new Set(['bin', 'include', 'lib', 'lib64', 'share', 'pyvenv.cfg', '.gitignore']);
  return existsSync(path.join(folder, 'pyvenv.cfg')) || readdirSync(folder).every((name) => known.has(name));
}

async function installLock(root, venv, lock, env, space) {
  const marker = markerOf(venv, lock.name);
  rmSync(marker, { force: true }); // what is under way is not installed: a killed install is continued
  const log = path.join(root, 'artifacts', 'logs', `install-${lock.name}.log`);
  mkdirSync(path.dirname(log), { recursive: true });
  if (lock.name === 'cuda') await removeCpuTorch(venv, env);
  let record = lock.sha256;
  if ((await install(venv.python, lock, { log, env })) === 'other-torch') {
    const cuda = readLock(root, 'cuda');
    process.stderr.write(
      `pip’s index offers no PyTorch without CUDA, which ${lock.name}.txt pins: installing that of cuda.txt\n`,
    );
    requireSpace(venv.folder, SPACE.cuda, space);
    const file = path.join(path.dirname(log), `${lock.name}-with-cuda.txt`);
    writeFileSync(file, mergeLocks(lock, cuda));
    if ((await install(venv.python, { ...lock, file }, { log, env })) !== 'done') throw unpinned(lock, log);
    record = `${lock.sha256} ${cuda.name} ${cuda.sha256}`;
  }
  writeFileSync(`${marker}.tmp`, `${record}\n`);
  renameSync(`${marker}.tmp`, marker);
}

/** pip takes an installed 2.13.0+cpu for the 2.13.0 of the CUDA lock. */
async function removeCpuTorch(venv, env) {
  const version = ['-c', 'from importlib.metadata import version; print(version("torch"))'];
  if (!spawnSync(venv.python, version, { encoding: 'utf8', timeout: 30_000 }).stdout?.includes('+cpu')) return;
  rmSync(markerOf(venv, 'cpu'), { force: true });
  const code = await run(venv.python, ['-m', 'pip', 'uninstall', '--yes', 'torch'], { env, onLine: () => {} });
  if (code > 128) throw interrupted(code);
}

function unpinned(lock, log) {
  return new Failure(`requirements/${lock.name}.txt does not pin everything that its packages need`, {
    where: log,
    fix: 'compile the locks again: python requirements/compile.py',
  });
}

/** The marker holds the lock's sha256, and that of the lock whose PyTorch was taken, if one was. */
function isInstalled(root, venv, lock) {
  let words;
  try {
    words = readFileSync(markerOf(venv, lock.name), 'utf8').trim().split(' ');
  } catch {
    return false;
  }
  const [sha256, name, other] = words;
  return sha256 === lock.sha256 && (!name || readLock(root, name).sha256 === other);
}

function markerOf(venv, name) {
  return path.join(venv.folder, `.dm-forge-${name}`);
}

/** Throws a Failure unless `needed` bytes are free where `folder` is or will be. */
export function requireSpace(folder, needed, space = freeSpace) {
  let existing = folder;
  while (!existsSync(existing)) existing = path.dirname(existing);
  const free = space(existing);
  if (free >= needed) return;
  const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(1)} GB`;
  throw new Failure(
    `the disk is too full for the Python packages: ${gigabytes(needed)} needed, ${gigabytes(free)} free`,
    {
      where: existing,
      fix: `free ${gigabytes(needed - free)} on that disk, or set DM_FORGE_VENV to a folder on another`,
    },
  );
}

function freeSpace(folder) {
  const { bavail, bsize } = statfsSync(folder);
  return bavail * bsize;
}
