/** pnpm test: sets itself up, then runs the launcher's tests and the pipeline's; further arguments go to pytest. */
import { readdirSync } from 'node:fs';
import path from 'node:path';
import { run } from './launcher/child.js';
import { exitWith } from './launcher/failure.js';
import { prepare } from './launcher/native.js';
import { nativePlan, ROOT } from './launcher/run.js';

await exitWith(async () => {
  const started = Date.now();
  const { python } = await prepare(ROOT, [nativePlan().lock, 'dev']);
  const folder = path.join('tests', 'scripts');
  const files = readdirSync(path.join(ROOT, folder)).filter((name) => name.endsWith('.test.js'));
  const steps = [
    ['llama.cpp', python, ['-m', 'pipeline', 'setup']],
    ['launcher', process.execPath, ['--test', ...files.map((name) => path.join(folder, name))]],
    // Files go to workers whole: what a module's fixtures export is made once.
    ['pipeline', python, ['-m', 'pytest', '-n', 'auto', '--dist', 'loadfile', ...process.argv.slice(2)]],
  ];
  const failed = [];
  for (const [name, command, args] of steps) {
    const code = await run(command, args, { cwd: ROOT });
    if (code >= 128) return code;
    if (code !== 0) failed.push(`${name} (exit ${code})`);
  }
  const seconds = Math.round((Date.now() - started) / 1000);
  process.stdout.write(
    failed.length > 0 ? `failed: ${failed.join(', ')}; ${seconds} s\n` : `all tests passed in ${seconds} s\n`,
  );
  return failed.length > 0 ? 1 : 0;
});
