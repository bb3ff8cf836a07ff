import assert from 'node:assert/strict';
import test from 'node:test';
import { parse } from '../../scripts/launcher/arguments.js';

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
