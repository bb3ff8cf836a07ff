import assert from 'node:assert/strict';
import test from 'node:test';
import { parse } from '../../scripts/launcher/arguments.js';
import { buildArguments, pickNetwork, runArguments } from '../../scripts/launcher/container.js';

test('what is not the launcher’s is forwarded untouched and in order', () => {
  const own = parse(['--base', 'a b', '--where', 'native', '--set', 'x=--plan', '--plan'], {});
  assert.deepEqual(own.forwarded, ['--base', 'a b', '--set', 'x=--plan']);
  assert.deepEqual(own.asked, { where: 'native', source: '--where' });
  assert.equal(own.plan, true);
});

test('the flag wins over the environment variable', () => {
  assert.deepEqual(parse(['--where=native'], { DM_FORGE_WHERE: 'container' }).asked, {
    where: 'native',
    source: '--where',
  });
  assert.deepEqual(parse([], { DM_FORGE_WHERE: 'container' }).asked, { where: 'container', source: 'DM_FORGE_WHERE' });
});

test('--dev is the quick preset, and dashes that pnpm passes on are dropped', () => {
  assert.deepEqual(parse(['--', '--dev'], {}).forwarded, ['--preset', 'quick']);
});

test('--where without a value is a usage error', () => {
  assert.throws(() => parse(['--where'], {}), { code: 2 });
  assert.throws(() => parse(['--where', '--plan'], {}), { code: 2 });
});

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

test('the image is built by the bake target of its name', () => {
  assert.deepEqual(buildArguments('cpu').slice(0, 2), ['buildx', 'bake']);
  assert.equal(buildArguments('cpu').at(-1), 'runtime-cpu');
});

test('the network is open only while a base has to be fetched', () => {
  assert.equal(pickNetwork(['smollm2-135m']).network, 'none');
  assert.equal(pickNetwork([]).network, 'bridge');
  assert.equal(pickNetwork([], 'none').network, 'none');
  assert.throws(() => pickNetwork([], 'host'), { code: 2 });
});
