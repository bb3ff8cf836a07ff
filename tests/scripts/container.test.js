import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import test, { after, before } from 'node:test';
import { fileURLToPath } from 'node:url';
import { bakeArguments, runArguments } from '../../scripts/launcher/container.js';
import { imageDigest } from '../../scripts/launcher/image.js';
import { pickNetwork } from '../../scripts/launcher/network.js';
import { passedOn, siteOf } from '../../scripts/launcher/site.js';

let root;
before(() => {
  root = mkdtempSync(path.join(os.tmpdir(), 'dm-forge-container-'));
  mkdirSync(path.join(root, 'configs'));
  writeFileSync(path.join(root, 'configs', 'train.yaml'), 'seed: 1\n');
  writeFileSync(path.join(root, 'configs', 'quick.yaml'), '# tiny\nbase: smollm2-135m # embedded\n');
});
after(() => rmSync(root, { recursive: true, force: true }));

const request = {
  device: 'cuda',
  root: '/p',
  uid: 1000,
  gid: 100,
  network: 'none',
  terminal: false,
  args: ['train', '--seed', '3'],
};

test('the container has no root, no capabilities, no writable root and no network', () => {
  const vector = runArguments(request);
  for (const word of [
    '--read-only',
    '--cap-drop=ALL',
    '--security-opt=no-new-privileges',
    '--network=none',
    '--user=1000:100',
  ]) {
    assert.ok(vector.includes(word), word);
  }
  assert.ok(!vector.includes('--privileged'));
});

test('inputs are mounted read-only, outputs writable, and the verb comes last', () => {
  const vector = runArguments(request);
  const mounts = vector.filter((word) => word.startsWith('type=bind'));
  assert.deepEqual(mounts, [
    'type=bind,source=/p/training_data,target=/dm-forge/training_data,readonly',
    'type=bind,source=/p/configs,target=/dm-forge/configs,readonly',
    'type=bind,source=/p/artifacts,target=/dm-forge/artifacts',
    'type=bind,source=/p/assets,target=/dm-forge/assets',
  ]);
  assert.deepEqual(vector.slice(-4), ['dm-forge:runtime-cuda', 'train', '--seed', '3']);
});

test('only the CUDA image is given the GPUs', () => {
  assert.ok(runArguments(request).join(' ').includes('--gpus all'));
  const vector = runArguments({ ...request, device: 'cpu' }).join(' ');
  assert.ok(!vector.includes('--gpus') && vector.includes('dm-forge:runtime-cpu'));
});

test('a terminal is passed on only where there is one', () => {
  assert.ok(!runArguments(request).includes('--tty'));
  assert.ok(runArguments({ ...request, terminal: true }).includes('--tty'));
});

test('data is writable for the one verb that rewrites it', () => {
  const vector = runArguments({ ...request, args: ['data', 'convert', 'x.md'] });
  assert.ok(vector.includes('type=bind,source=/p/training_data,target=/dm-forge/training_data'));
});

test('a container with a network gets the site’s certificates, and secrets by name only', () => {
  const vector = runArguments({ ...request, network: 'bridge', ca: '/site/ca.pem', passed: ['HF_TOKEN'] });
  assert.ok(vector.includes('type=bind,source=/site/ca.pem,target=/run/ca.pem,readonly'));
  assert.ok(vector.includes('--env=PIP_CERT=/run/ca.pem') && vector.includes('--env=HF_TOKEN'));
  assert.deepEqual(passedOn({ HF_TOKEN: 'secret', https_proxy: 'x', PATH: '/bin' }), ['HF_TOKEN', 'https_proxy']);
});

test('bake may read the site’s files and no other', () => {
  assert.deepEqual(bakeArguments(['model']), ['buildx', 'bake', 'model']);
  const vector = bakeArguments(['model'], { ca: '/site/ca.pem', wheels: '/site/wheels' });
  assert.deepEqual(vector.slice(2, 4), ['--allow=fs.read=/site/ca.pem', '--allow=fs.read=/site/wheels']);
});

test('the site’s certificates and wheels are found in the environment', () => {
  const ca = path.join(root, 'configs', 'train.yaml');
  const env = { PIP_CERT: '/nowhere', SSL_CERT_FILE: ca, PIP_FIND_LINKS: `https://x/ ${root}` };
  assert.deepEqual(siteOf(env), { ca, wheels: root });
});

test('the network is closed when nothing has to be fetched', () => {
  const network = (args, bases = [], device = 'cpu') => pickNetwork(args, device, root, bases).network;
  assert.equal(network(['data', 'check']), 'none');
  assert.equal(network(['train']), 'bridge');
  assert.equal(network(['train'], ['smollm2-135m-b179']), 'none');
  assert.equal(network(['train'], ['smollm2-135m-b179'], 'cuda'), 'bridge', 'auto may choose a larger base on a GPU');
  assert.equal(network(['train', '--preset', 'quick'], ['smollm2-135m-b179'], 'cuda'), 'none');
  assert.equal(network(['train', '--base', 'gemma-3-270m'], ['smollm2-135m-b179']), 'bridge');
  assert.equal(network(['train', '--base=own/model@abc'], ['own--model-abc']), 'none');
  assert.equal(network(['train', '--base=own/model@abd'], ['own--model-abc']), 'bridge', 'another commit');
  assert.equal(network(['train'], ['gemma-3-270m-1f2e']), 'bridge', 'auto is another base on a CPU');
  assert.equal(network(['train', '--set', 'base=gemma-3-270m'], ['smollm2-135m-b179']), 'bridge');
});

test('a base of the catalogue is known in the cache by its hub id and commit, and auto is what the pipeline says', () => {
  const project = fileURLToPath(new URL('../..', import.meta.url));
  const catalogue = readFileSync(path.join(project, 'pipeline', 'bases', 'catalog.yaml'), 'utf8');
  const commit = /^ {2}qwen3-0\.6b:\n.*\n {4}revision: (\w{12})/m.exec(catalogue)[1];
  const network = (base, folder) => pickNetwork(['train', '--base', base], 'cpu', project, [folder]).network;
  assert.equal(network('qwen3-0.6b', `Qwen--Qwen3-0.6B-${commit}`), 'none');
  assert.equal(network('qwen3-0.6b', 'Qwen--Qwen3-0.6B-000000000000'), 'bridge');
  const embedded = /^EMBEDDED_DEFAULT = "(.*)"/m.exec(
    readFileSync(path.join(project, 'pipeline/bases/catalog.py'), 'utf8'),
  )[1];
  assert.equal(network('auto', `${embedded}-b179`), 'none');
});

test('DM_FORGE_NETWORK overrides, and knows two words', () => {
  assert.equal(pickNetwork(['train'], 'cpu', root, [], 'none').network, 'none');
  assert.throws(() => pickNetwork(['train'], 'cpu', root, [], 'host'), { code: 2 });
});

test('the image is another one when a file of it changes, and only then', () => {
  const digest = (env = {}) => imageDigest(root, env, ['configs']);
  const first = digest();
  mkdirSync(path.join(root, 'configs', '__pycache__'));
  writeFileSync(path.join(root, 'configs', '__pycache__', 'x.pyc'), 'noise');
  assert.equal(digest(), first);
  assert.notEqual(digest({ CUDA_ARCHITECTURES: '89-real' }), first, 'made for another GPU');
  writeFileSync(path.join(root, 'configs', 'train.yaml'), 'seed: 2\n');
  assert.notEqual(digest(), first);
});
