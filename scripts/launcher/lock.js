/** Hash-pinned requirement files: their digest, and the packages they name. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { Failure } from './failure.js';

/** Bytes that an installed lock takes at its fullest, pip's temporary copies included. */
export const SPACE = { cpu: 2.5e9, cuda: 9e9, metal: 2.5e9, dev: 0.5e9, notebook: 0.5e9 };

/** The lock called `name`: {name, file, sha256, packages: ['accelerate', …]}. */
export function readLock(root, name) {
  const file = path.join(root, 'requirements', `${name}.txt`);
  let text;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new Failure(`the lock ${file} cannot be read: ${error.code}`, {
      fix: 'restore it: git checkout -- requirements',
    });
  }
  const packages = [...text.matchAll(/^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==/gm)].map((match) =>
    match[1].toLowerCase(),
  );
  return { name, file, sha256: createHash('sha256').update(text).digest('hex'), packages: [...new Set(packages)] };
}

/** The entries of `pins` for packages that `lock` does not name, as the text of a requirements file. */
export function missingPins(lock, pins) {
  const entries = readFileSync(pins.file, 'utf8').split(/\n(?=[A-Za-z0-9])/);
  const named = (entry) => /^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==/.exec(entry)?.[1].toLowerCase();
  return `${entries.filter((entry) => named(entry) && !lock.packages.includes(named(entry))).join('\n')}\n`;
}
