/** What an image is made of, files and bake's variables, as one digest. Data and settings are not in it: they are mounted. */
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

const VARIABLES = ['BASE_IMAGE', 'CUDA_ARCHITECTURES'];
const PARTS = ['Dockerfile', 'docker-bake.hcl', '.dockerignore', 'docker', 'requirements', 'pipeline'];

export function imageDigest(root, env = process.env, parts = PARTS) {
  const hash = createHash('sha256');
  for (const name of VARIABLES) hash.update(`${name}=${env[name] ?? ''}\n`);
  for (const file of parts.flatMap((part) => filesBelow(root, part)).sort()) {
    const content = createHash('sha256')
      .update(readFileSync(path.join(root, file)))
      .digest('hex');
    hash.update(`${file}\0${content}\n`);
  }
  return hash.digest('hex');
}

function filesBelow(root, part) {
  let entries;
  try {
    entries = readdirSync(path.join(root, part), { withFileTypes: true });
  } catch (error) {
    if (error.code === 'ENOTDIR') return [part];
    throw error;
  }
  return entries
    .filter((entry) => !['__pycache__', '.mypy_cache'].includes(entry.name))
    .flatMap((entry) =>
      entry.isDirectory() ? filesBelow(root, path.join(part, entry.name)) : [path.join(part, entry.name)],
    );
}
