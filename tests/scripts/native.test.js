import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import test, { after, before } from 'node:test';
import { fileURLToPath } from 'node:url';
import { findPythons } from '../../scripts/launcher/host.js';
import { explain, install } from '../../scripts/launcher/install.js';
import { choosePython, prepare, requireSpace, venvOf } from '../../scripts/launcher/native.js';

const RUN = fileURLToPath(new URL('../../scripts/launcher/run.js', import.meta.url));
// A wheel is a zip file: tiny ones, of which `tiny-heavy` needs `tiny-light`.
const MAKE_WHEELS = `
import hashlib, sys, zipfile
for name, version, needs in (("tiny_light", "1.0", ""), ("tiny_heavy", "1.0", "Requires-Dist: tiny-light\\n"), ("torch", "9.9.9", ""), ("torch", "9.9.9+cpu", "")):
    path = f"{sys.argv[1]}/{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "present = True\\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n{needs}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\\n{info}/METADATA,,\\n{info}/WHEEL,,\\n{info}/RECORD,,\\n")
    print(hashlib.sha256(open(path, "rb").read()).hexdigest())
`;
const MAIN =
  'import json, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit(int(sys.argv[-1]) if sys.argv[-1].isdigit() else 0)\n';

const CPU_TORCH = 'torch-9.9.9+cpu-py3-none-any.whl';
let root;
let env;
let light;
let heavy;
let torch;
let cpuTorch;
const roomy = () => 1e12;
const lock = (name, text) => writeFileSync(path.join(root, 'requirements', `${name}.txt`), text);
const pinned = (name, sha256) => `${name}==1.0 \\\n    --hash=sha256:${sha256}\n`;
const inVenv = (code) => spawnSync(venvOf(root, env).python, ['-c', code]).status === 0;
const marker = (name) => path.join(venvOf(root, env).folder, `.dm-forge-${name}`);

before(() => {
  root = mkdtempSync(path.join(os.tmpdir(), 'dm-forge-native-'));
  for (const folder of ['requirements', 'wheels', 'pipeline']) mkdirSync(path.join(root, folder));
  const made = spawnSync('python3', ['-c', MAKE_WHEELS, path.join(root, 'wheels')], { encoding: 'utf8' });
  mkdirSync(path.join(root, 'cpu-wheels'));
  renameSync(path.join(root, 'wheels', CPU_TORCH), path.join(root, 'cpu-wheels', CPU_TORCH));
  [light, heavy, torch, cpuTorch] = made.stdout.trim().split('\n');
  writeFileSync(path.join(root, 'pipeline', '__main__.py'), MAIN);
  env = { ...process.env, PIP_NO_INDEX: '1', PIP_FIND_LINKS: path.join(root, 'wheels'), PIP_CONFIG_FILE: os.devNull };
  delete env.DM_FORGE_VENV;
  delete env.DM_FORGE_PYTHON;
});

after(() => rmSync(root, { recursive: true, force: true }));

test('the first run makes the venv, installs the lock, and leaves its digest as the marker', async () => {
  lock('cpu', pinned('tiny-light', light));
  await prepare(root, ['cpu'], { env, space: roomy });
  assert.ok(inVenv('import tiny_light'));
  assert.match(readFileSync(marker('cpu'), 'utf8'), /^[0-9a-f]{64}\n$/);
  assert.ok(existsSync(path.join(root, 'artifacts', 'logs', 'install-cpu.log')));
});

test('a later run does nothing: it needs no network, no space and no Python on PATH', async () => {
  const offline = { ...env, PIP_FIND_LINKS: '/nowhere', PATH: '/nowhere' };
  const started = Date.now();
  await prepare(root, ['cpu'], { env: offline, space: () => 0 });
  assert.ok(Date.now() - started < 2000);
});

test('an interrupted install is continued, and a changed lock installed', async () => {
  rmSync(marker('cpu'));
  await prepare(root, ['cpu'], { env, space: roomy });
  assert.ok(existsSync(marker('cpu')));
  const before = readFileSync(marker('cpu'), 'utf8');
  lock('cpu', `# another lock\n${pinned('tiny-light', light)}`);
  await prepare(root, ['cpu'], { env, space: roomy });
  assert.notEqual(readFileSync(marker('cpu'), 'utf8'), before);
});

test('a venv left half-made by a kill is made again', async () => {
  rmSync(path.join(venvOf(root, env).folder, 'lib'), { recursive: true });
  await prepare(root, ['cpu'], { env, space: roomy });
  assert.ok(inVenv('import tiny_light'));
});

test('a lock hash mismatch is explained, and the lock does not count as installed', async () => {
  lock('bad', pinned('tiny-heavy', 'a'.repeat(64)));
  await assert.rejects(prepare(root, ['bad'], { env, space: roomy }), (error) => {
    assert.match(error.message, /another hash/);
    assert.match(error.message, new RegExp(heavy));
    assert.match(error.where, /bad\.txt.*install-bad\.log/s);
    return true;
  });
  assert.ok(!existsSync(marker('bad')) && !inVenv('import tiny_heavy'));
});

test('what the CPU lock does not pin is taken from the CUDA lock, once', async () => {
  lock('cpu', pinned('tiny-heavy', heavy));
  lock('cuda', pinned('tiny-heavy', heavy) + pinned('tiny-light', light));
  spawnSync(venvOf(root, env).python, ['-m', 'pip', 'uninstall', '-y', 'tiny-light']);
  await prepare(root, ['cpu'], { env, space: roomy });
  assert.ok(inVenv('import tiny_light, tiny_heavy'));
  await prepare(root, ['cpu'], { env: { ...env, PIP_FIND_LINKS: '/nowhere' }, space: () => 0 });
});

test('no network on a first run is a clear error that names the log', async () => {
  lock('far', pinned('dm-forge-not-here', light));
  const unreachable = { ...env, PIP_NO_INDEX: '0', PIP_INDEX_URL: 'http://127.0.0.1:9/simple', PIP_RETRIES: '1' };
  await assert.rejects(prepare(root, ['far'], { env: unreachable, space: roomy }), (error) => {
    assert.match(error.message, /cannot reach its index/);
    assert.match(error.fix, /connect to the network/);
    assert.ok(existsSync(error.where));
    return true;
  });
});

test('an index without the package is explained', async () => {
  await assert.rejects(prepare(root, ['far'], { env, space: roomy }), /or the index does not have a locked package/);
});

test('without a CPU PyTorch that of the CUDA lock is taken', async () => {
  lock('cpu', `torch==9.9.9+cpu \\\n    --hash=sha256:${light}\n${pinned('tiny-light', light)}`);
  lock('cuda', pinned('tiny-light', light));
  await assert.rejects(prepare(root, ['cpu'], { env, space: roomy }), /does not pin everything|torch/);
  lock('cuda', `${pinned('tiny-light', light)}torch==9.9.9 \\\n    --hash=sha256:${torch}\n`);
  await prepare(root, ['cpu'], { env, space: roomy });
  assert.ok(inVenv('import torch'));
});

test('a GPU that comes later gets its own PyTorch, though pip would take the other for it', async () => {
  const version = () =>
    spawnSync(venvOf(root, env).python, ['-c', 'from importlib.metadata import version; print(version("torch"))'], {
      encoding: 'utf8',
    }).stdout.trim();
  spawnSync(venvOf(root, env).python, ['-m', 'pip', 'uninstall', '-y', 'torch']);
  lock('cpu', `torch==9.9.9+cpu \\\n    --hash=sha256:${cpuTorch}\n`);
  lock('cuda', `torch==9.9.9 \\\n    --hash=sha256:${torch}\n`);
  await prepare(root, ['cpu'], { env: { ...env, PIP_FIND_LINKS: path.join(root, 'cpu-wheels') }, space: roomy });
  assert.equal(version(), '9.9.9+cpu');
  await prepare(root, ['cuda'], { env, space: roomy });
  assert.equal(version(), '9.9.9');
  assert.ok(!existsSync(marker('cpu')));
});

test('a missing lock is explained', async () => {
  await assert.rejects(prepare(root, ['absent'], { env, space: roomy }), /absent\.txt cannot be read: ENOENT/);
});

test('a full disk is refused before anything is made, with the number needed', async () => {
  const folder = path.join(root, 'other-venv');
  await assert.rejects(
    prepare(root, ['cpu'], { env: { ...env, DM_FORGE_VENV: folder }, space: () => 1e9 }),
    (error) => {
      assert.match(error.message, /2\.5 GB needed, 1\.0 GB free/);
      assert.match(error.fix, /free 1\.5 GB/);
      return true;
    },
  );
  assert.ok(!existsSync(folder));
  assert.doesNotThrow(() => requireSpace(root, 1));
});

test('a folder that is no venv is never overwritten', async () => {
  const folder = path.join(root, 'precious');
  mkdirSync(folder);
  writeFileSync(path.join(folder, 'thesis.txt'), 'years of work');
  await assert.rejects(
    prepare(root, ['cpu'], { env: { ...env, DM_FORGE_VENV: folder }, space: roomy }),
    /is in the way/,
  );
  assert.ok(existsSync(path.join(folder, 'thesis.txt')));
});

test('an old Python is refused by its version', () => {
  const found = findPythons({ PATH: fakePython('old', 'echo "Python 3.9.2"') });
  assert.throws(
    () => choosePython(found, {}),
    (error) => {
      assert.match(error.message, /python3: 3\.9\.2 is too old/);
      assert.match(error.fix, /Python 3\.11/);
      return true;
    },
  );
});

test('a Python newer than the locks, and a broken one, are refused', () => {
  const tooNew = `echo '[[3,14,0],"/x/python3","x86_64",[]]'`;
  assert.throws(() => choosePython(findPythons({ PATH: fakePython('new', tooNew) }), {}), /3\.14\.0 is newer/);
  const broken = 'echo "no such library" >&2; exit 4';
  assert.throws(
    () => choosePython(findPythons({ PATH: fakePython('broken', broken) }), {}),
    /ends with 4: no such library/,
  );
});

test('no Python at all is said, and the one asked for is named', () => {
  assert.throws(() => choosePython(findPythons({ PATH: '/nowhere' }), {}), /no Python was found/);
  const env = { PATH: '/nowhere', DM_FORGE_PYTHON: '/opt/none/python' };
  assert.throws(
    () => choosePython(findPythons(env), env),
    (error) => {
      assert.match(error.message, /\/opt\/none\/python: cannot be started \(ENOENT\)/);
      assert.equal(error.where, 'DM_FORGE_PYTHON');
      return true;
    },
  );
});

test('a Python without its venv module names the Debian package', () => {
  const folder = fakePython('bare', `echo '[[3,11,2],"/usr/bin/python3","x86_64",["ensurepip"]]'`);
  assert.throws(
    () => choosePython(findPythons({ PATH: folder }), {}),
    (error) => {
      assert.match(error.message, /without its ensurepip module/);
      assert.match(error.fix, /apt-get install python3\.11-venv/);
      return true;
    },
  );
});

test('Ctrl-C while pip works is an interruption, not a failure of pip', async () => {
  const python = path.join(fakePython('cancelled', 'echo "ERROR: Operation cancelled by user"; exit 1'), 'python3');
  const lock = { name: 'cpu', file: 'cpu.txt', packages: [] };
  await assert.rejects(install(python, lock, { log: path.join(root, 'log') }), { code: 130 });
});

test('the disk filling up and an unknown certificate are explained', () => {
  const lock = { file: 'cpu.txt' };
  assert.match(explain('OSError: [Errno 28] No space left on device', lock, 'l').message, /disk became full/);
  assert.match(explain('[SSL: CERTIFICATE_VERIFY_FAILED]', lock, 'l').fix, /global\.cert/);
});

test('arguments, streams and the exit code go through the launcher', () => {
  lock('cpu', pinned('tiny-light', light));
  for (const name of ['cuda', 'metal']) lock(name, pinned('tiny-light', light));
  const script = `import { exitWith } from ${JSON.stringify(path.join(path.dirname(RUN), 'failure.js'))};
    import { launch } from ${JSON.stringify(RUN)};
    await exitWith(() => launch(['data', 'check'], process.argv.slice(2), process.argv[1]));`;
  const args = ['--input-type=module', '--eval', script, root, '--where', 'native', 'a b', '5'];
  const roomyEnv = { ...env, DM_FORGE_WHERE: '' };
  const answer = spawnSync(process.execPath, args, { env: roomyEnv, encoding: 'utf8' });
  assert.equal(answer.stdout, '["data", "check", "a b", "5"]\n', answer.stderr);
  assert.equal(answer.status, 5);
});

test('--plan stops before anything is made, and --help needs no environment', () => {
  const bare = { ...process.env, DM_FORGE_VENV: path.join(root, 'never') };
  const plan = spawnSync(process.execPath, [RUN, 'train', '--plan', '--json'], { env: bare, encoding: 'utf8' });
  assert.equal(plan.status, 0, plan.stderr);
  assert.equal(JSON.parse(plan.stdout).command, 'python -m pipeline train --json');
  const help = spawnSync(process.execPath, [RUN, 'train', '--help'], { env: bare, encoding: 'utf8' });
  assert.equal(help.status, 0);
  assert.match(help.stdout, /--where native\|container/);
  assert.ok(!existsSync(bare.DM_FORGE_VENV));
});

/** A folder for PATH that holds nothing but a python3 with this script as its body. */
function fakePython(name, body) {
  const folder = path.join(root, `path-${name}`);
  mkdirSync(folder);
  writeFileSync(path.join(folder, 'python3'), `#!/bin/sh\n${body}\n`);
  chmodSync(path.join(folder, 'python3'), 0o755);
  return folder;
}
