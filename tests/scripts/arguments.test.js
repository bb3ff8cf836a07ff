import assert from 'node:assert/strict';
import test from 'node:test';
import { nativeAlone, parse } from '../../scripts/launcher/arguments.js';

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

test('what the images lack runs on the host alone, and says so', () => {
  const reason = (verb, ...argv) => nativeAlone([verb], parse(argv, {}));
  assert.equal(reason('bench', 'check'), 'the verb bench');
  assert.equal(reason('runtime-check'), 'the verb runtime-check');
  assert.equal(reason('train', '--runtime-check'), '--runtime-check');
  assert.equal(reason('train', '--nnodes', '2', '--rendezvous', '10.0.0.1:29400'), '--nnodes');
  assert.equal(reason('train', '--nnodes=2'), '--nnodes');
  assert.equal(reason('train', '--notebook'), '--notebook');
  for (const argv of [[], ['--nproc', '2'], ['--nnodes', '1'], ['--nnodes=1']])
    assert.equal(reason('train', ...argv), '');
});
