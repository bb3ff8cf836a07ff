import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import test, { after, before } from 'node:test';
import { takeTurn } from '../../scripts/launcher/turn.js';

let folder;
before(() => {
  folder = mkdtempSync(path.join(os.tmpdir(), 'dm-forge-turn-'));
});
after(() => rmSync(folder, { recursive: true, force: true }));

test('processes that start together work one after the other', async () => {
  const script = path.join(folder, 'worker.mjs');
  const [log, turn] = ['log', 'turn'].map((name) => path.join(folder, name));
  writeFileSync(
    script,
    `import { appendFileSync } from 'node:fs';
    import { takeTurn } from ${JSON.stringify(new URL('../../scripts/launcher/turn.js', import.meta.url).href)};
    await takeTurn(${JSON.stringify(turn)}, async () => {
      appendFileSync(${JSON.stringify(log)}, 'in ');
      await new Promise((resolve) => setTimeout(resolve, 150));
      appendFileSync(${JSON.stringify(log)}, 'out ');
    }, { pause: 20 });`,
  );
  const workers = Array.from({ length: 4 }, () => spawn(process.execPath, [script]));
  const codes = await Promise.all(workers.map((worker) => new Promise((resolve) => worker.on('close', resolve))));
  assert.deepEqual(codes, [0, 0, 0, 0]);
  assert.equal(readFileSync(log, 'utf8'), 'in out '.repeat(4));
});

test('a process that died does not hold the others up', async () => {
  const turn = path.join(folder, 'stale');
  const gone = spawnSync(process.execPath, ['-e', 'console.log(process.pid)'], { encoding: 'utf8' }).stdout;
  symlinkSync(gone.trim(), turn);
  assert.equal(await takeTurn(turn, async () => 'done'), 'done');
  assert.ok(!readdirSync(folder).some((name) => name.startsWith(path.basename(turn))));
});

test('the turn ends where the work fails', async () => {
  const turn = path.join(folder, 'failing');
  await assert.rejects(
    takeTurn(turn, async () => {
      throw new Error('no');
    }),
    /no/,
  );
  assert.ok(!readdirSync(folder).some((name) => name.startsWith(path.basename(turn))));
});
