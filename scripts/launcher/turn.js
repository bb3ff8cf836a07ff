/** One process at a time: a link names whoever is at work, others wait for it, and one that died is passed over. */
import { mkdirSync, readlinkSync, renameSync, rmSync, symlinkSync } from 'node:fs';
import path from 'node:path';

/** Do `work` when no other process does work under the same file; gives what it gives. */
export async function takeTurn(file, work, { out = process.stderr, pause = 500 } = {}) {
  mkdirSync(path.dirname(file), { recursive: true });
  for (let told = false; !take(file); ) {
    const holder = holderOf(file);
    if (!holder) continue; // it has just ended
    if (isAlive(holder)) {
      if (!told) out.write(`process ${holder} is making the environment: waiting for it (it is named in ${file})\n`);
      told = true;
      await new Promise((resolve) => setTimeout(resolve, pause));
    } else passOver(file, holder);
  }
  try {
    return await work();
  } finally {
    rmSync(file, { force: true });
  }
}

function take(file) {
  try {
    symlinkSync(`${process.pid}`, file); // made and filled in one step, unlike a file
    return true;
  } catch (error) {
    if (error.code === 'EEXIST') return false;
    throw error;
  }
}

function holderOf(file) {
  try {
    return Number(readlinkSync(file));
  } catch {
    return 0;
  }
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}

/** Of several that find the link of a dead process, one moves it away; the link of a living one goes back. */
function passOver(file, dead) {
  const aside = `${file}.${process.pid}`;
  try {
    renameSync(file, aside);
    if (holderOf(aside) === dead) rmSync(aside);
    else renameSync(aside, file);
  } catch (error) {
    if (error.code !== 'ENOENT') throw error;
  }
}
