import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import path from 'node:path';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { exitCode, run } from '../../scripts/launcher/child.js';

const CHILD = fileURLToPath(new URL('../../scripts/launcher/child.js', import.meta.url));
const LAUNCHER = `import { run } from ${JSON.stringify(CHILD)}; process.exitCode = await run('sh', ['-c', process.argv[1]]);`;
const launcher = (script) => ['--input-type=module', '--eval', LAUNCHER, script];
// Counts interrupts for a while, so that a second one would be seen.
const COUNTING =
  'n=0; trap "n=\\$((n+1))" INT; echo ready; i=0; while [ $i -lt 12 ]; do sleep 0.1; i=$((i+1)); done; exit $((40+n))';

test('exit codes pass through', async () => {
  assert.equal(await run('sh', ['-c', 'exit 3'], { onLine: () => {} }), 3);
  assert.equal(await run('true', []), 0);
});

test('a child killed by a signal is a failure, never a success', async () => {
  assert.equal(await run('sh', ['-c', 'kill -KILL $$']), 137);
  assert.equal(await run('sh', ['-c', 'kill -TERM $$']), 143);
  assert.equal(exitCode(null, 'SIGINT'), 130);
  assert.notEqual(exitCode(null, 'SIGUNKNOWN'), 0);
});

test('the launcher’s own exit code is that of the killed child', () => {
  assert.equal(spawnSync(process.execPath, launcher('kill -KILL $$')).status, 137);
});

test('a command that is not there is explained', async () => {
  await assert.rejects(run('dm-forge-no-such-command', []), /cannot be started: ENOENT/);
});

test('lines arrive whole, the last one too', async () => {
  const lines = [];
  await run('sh', ['-c', 'printf "one\\ntw"; printf "o"'], { onLine: (line) => lines.push(line) });
  assert.deepEqual(lines, ['one', 'two']);
});

for (const [signal, code] of [
  ['SIGTERM', 7],
  ['SIGHUP', 8],
]) {
  test(`${signal} reaches the child, whose exit code is kept`, async () => {
    const trap = `trap "exit ${code}" ${signal.slice(3)}; echo ready; i=0; while [ $i -lt 200 ]; do sleep 0.05; i=$((i+1)); done`;
    assert.equal(await signalled(trap, (launched) => launched.kill(signal)), code);
  });
}

test('without a terminal an interrupt is passed on, once', async () => {
  assert.equal(await signalled(COUNTING, (launched) => launched.kill('SIGINT')), 41);
});

test('on a terminal Ctrl-C reaches the child once, not twice', () => {
  const python = `
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
seen = b""
while b"ready" not in seen:
    seen += os.read(terminal, 1024)
os.write(terminal, b"\\x03")
try:
    while os.read(terminal, 1024):
        pass
except OSError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
`;
  const answer = spawnSync('python3', ['-c', python, process.execPath, ...launcher(COUNTING)], { timeout: 30_000 });
  assert.equal(answer.status, 41, String(answer.stderr));
});

/** Start the launcher in a session of its own (so without a terminal), act once the child is ready, give the exit code. */
function signalled(script, act) {
  return new Promise((resolve) => {
    const launched = spawn(process.execPath, launcher(script), {
      detached: true,
      stdio: ['ignore', 'pipe', 'inherit'],
      cwd: path.dirname(CHILD),
    });
    launched.stdout.once('data', () => act(launched));
    launched.on('exit', (code, signal) => resolve(code ?? signal));
  });
}
