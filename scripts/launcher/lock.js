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

/** `lock` with another lock's entries in place of its own, and those it does not have, as a requirements file's text. */
export function mergeLocks(lock, other) {
  const entries = new Map();
  for (const { file } of [lock, other]) {
    for (const entry of readFileSync(file, 'utf8').split(/\n(?=[A-Za-z0-9])/)) {
      const name = /^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==/.exec(entry)?.[1].toLowerCase();
      if (name) entries.set(name, entry.trimEnd());
    }
  }
  return `${[...entries.values()].join('\n')}\n`;
}
