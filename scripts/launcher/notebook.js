/** `pnpm run train --notebook`: the same journey, cell by cell. */
import { existsSync } from 'node:fs';
import path from 'node:path';
import { run } from './child.js';
import { Failure } from './failure.js';
import { prepare } from './native.js';

export async function openNotebook(root, lock) {
  const file = path.join('notebooks', 'train_gguf_model.ipynb');
  if (!existsSync(path.join(root, file))) {
    throw new Failure('this checkout has no notebook', { where: file, fix: 'restore it: git checkout -- notebooks' });
  }
  const extra = existsSync(path.join(root, 'requirements', 'notebook.txt')) ? ['notebook'] : [];
  const { folder } = await prepare(root, [lock, ...extra]);
  for (const program of ['jupyter-lab', 'jupyter-notebook']) {
    const found = path.join(folder, 'bin', program);
    if (existsSync(found)) return run(found, [file], { cwd: root });
  }
  throw new Failure('Jupyter is not installed in the environment', {
    where: folder,
    fix: `install it there (${path.join(folder, 'bin', 'pip')} install jupyterlab), or open ${file} in an editor that runs notebooks`,
  });
}
