/** pip, with the user's own configuration; what it says goes to a log, and its usual failures are explained. */
import { createWriteStream } from 'node:fs';
import path from 'node:path';
import { run } from './child.js';
import { Failure, interrupted } from './failure.js';

const PLAIN_INTERVAL = 10_000; // milliseconds between two lines when nobody watches
const OTHER_TORCH =
  /requirements must have their versions pinned with ==|missing from some requirements|No matching distribution found for torch==\S*\+cpu/;
const OFFLINE =
  /NewConnectionError|ConnectTimeout|Max retries exceeded|name resolution|Network is unreachable|Connection refused|ConnectionError|ReadTimeout/;

/**
 * Install a lock. Gives 'done', or 'other-torch' when pip's index has no PyTorch without CUDA, or gives one that needs
 * CUDA's libraries though the lock does not pin them.
 */
export async function install(python, lock, { log, env = process.env, out = process.stderr }) {
  const args = [
    '-m',
    'pip',
    'install',
    '--require-hashes',
    '--no-compile',
    '--no-input',
    '--disable-pip-version-check',
  ];
  const started = Date.now();
  const bar = progress(lock, out);
  const file = createWriteStream(log);
  const lines = [];
  const code = await run(python, [...args, '--progress-bar', 'off', '-r', lock.file], {
    env: { ...env, PIP_USER: '0', PYTHONUNBUFFERED: '1' },
    onLine: (line) => {
      file.write(`${line}\n`);
      lines.push(line);
      bar.see(line);
    },
  });
  file.end();
  const seconds = Math.round((Date.now() - started) / 1000);
  bar.end(
    code === 0 ? `✓ installed ${lock.packages.length} packages of ${path.basename(lock.file)} (${seconds} s)` : '',
  );
  if (code === 0) return 'done';
  if (code > 128) throw interrupted(code);
  const output = lines.join('\n');
  if (output.includes('Operation cancelled by user')) throw interrupted(130); // pip's answer to Ctrl-C is exit 1
  if (OTHER_TORCH.test(output)) return 'other-torch';
  throw explain(output, lock, log);
}

/** What pip's output means, and what to do about it. */
export function explain(output, lock, log) {
  const last = output
    .split('\n')
    .filter((line) => line.trim())
    .slice(-6)
    .join('\n  ');
  if (output.includes('DO NOT MATCH THE HASHES')) {
    const shown = output
      .slice(output.indexOf('THESE PACKAGES DO NOT MATCH'))
      .split('\n')
      .filter((line) => line.trim());
    const facts = shown.filter((line) => /^\s+(Expected|Got|[\w.-]+==|[\w.-]+ from)/.test(line)).slice(0, 6);
    return new Failure(
      `a package is not the one that was locked: it has another hash\n  ${facts.map((line) => line.trim()).join('\n  ')}`,
      {
        where: `${lock.file} (pip’s output: ${log})`,
        fix: 'nothing of it was installed. Check what pip’s index and find-links point at (pip config list); if the file was replaced on purpose, compile the locks again',
      },
    );
  }
  if (/No space left on device/.test(output)) {
    return new Failure('the disk became full while the packages were installed', {
      where: log,
      fix: 'free some space and run again',
    });
  }
  if (/CERTIFICATE_VERIFY_FAILED/.test(output)) {
    return new Failure('pip does not trust the index’s certificate', {
      where: log,
      fix: 'tell pip your network’s certificate: pip config set global.cert /path/to/bundle.pem',
    });
  }
  if (OFFLINE.test(output)) {
    return new Failure(`the packages cannot be fetched: pip cannot reach its index\n  ${last}`, {
      where: log,
      fix: 'connect to the network (or set pip’s proxy or index) and run again; the first run needs it, later ones do not',
    });
  }
  if (/No matching distribution found|Could not find a version/.test(output)) {
    return new Failure(
      `pip cannot reach its index, or the index does not have a locked package for this machine\n  ${last}`,
      {
        where: log,
        fix: 'connect to the network; check what pip’s index and find-links point at (pip config list); then run again',
      },
    );
  }
  return new Failure(`pip could not install ${path.basename(lock.file)}:\n  ${last}`, {
    where: log,
    fix: 'read the log; then run again',
  });
}

/** One line on a terminal, rewritten; else a line now and then. */
function progress(lock, out) {
  const seen = new Set();
  const name = path.basename(lock.file);
  const started = Date.now();
  let shown = 0;
  const show = (text) => {
    if (out.isTTY) out.write(`\r\u001b[K${text}`);
    else if (Date.now() - shown > PLAIN_INTERVAL) out.write(`${text}\n`);
    else return;
    shown = Date.now();
  };
  return {
    see(line) {
      const match = /^(?:Collecting|Requirement already satisfied:) ([A-Za-z0-9][\w.-]*)/.exec(line);
      if (match) seen.add(match[1].toLowerCase());
      const done = Math.min(seen.size, lock.packages.length);
      const seconds = Math.round((Date.now() - started) / 1000);
      if (line.startsWith('Installing collected packages'))
        show(`installing ${name}: unpacking ${lock.packages.length} packages (${seconds} s)`);
      else if (match) show(`installing ${name}: ${done} of ${lock.packages.length}, ${match[1]} (${seconds} s)`);
    },
    end(text) {
      if (out.isTTY) out.write('\r\u001b[K');
      if (text) out.write(`${text}\n`);
    },
  };
}
