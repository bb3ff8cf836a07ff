/** Child processes: streams inherited, signals passed on once, and no signal ever mistaken for success. */
import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { constants } from 'node:os';
import { Failure } from './failure.js';

const FORWARDED = ['SIGINT', 'SIGTERM', 'SIGHUP'];

/** A child that ended by a signal has no exit code (null, which would count as 0): the shell's 128 + n says it. */
export function exitCode(code, signal) {
  return code ?? 128 + (constants.signals[signal] ?? 0);
}

/**
 * Run a command to its end and give its exit code. `onLine`, if given, receives every line of stdout and stderr
 * instead of the terminal.
 */
export function run(command, args, { env = process.env, cwd, onLine } = {}) {
  return new Promise((resolve, reject) => {
    const stdio = onLine ? ['ignore', 'pipe', 'pipe'] : 'inherit';
    let child;
    const stop = forwardSignals((signal) => child.kill(signal)); // before the child: a signal may follow at once
    child = spawn(command, args, { env, cwd, stdio });
    if (onLine) for (const stream of [child.stdout, child.stderr]) splitLines(stream, onLine);
    child.on('error', (error) => {
      stop();
      reject(new Failure(`${command} cannot be started: ${error.code}`, { fix: `install ${command}, or check PATH` }));
    });
    child.on('close', (code, signal) => {
      stop();
      resolve(exitCode(code, signal));
    });
  });
}

/**
 * Pass signals on to the child. Ctrl-C is special: a terminal sends it to the whole process group, the child
 * included, and a second one would cut short the child's own tidying up.
 */
function forwardSignals(send) {
  const handlers = FORWARDED.map((signal) => {
    const handler = () => {
      if (signal !== 'SIGINT' || !hasTerminal()) send(signal);
    };
    process.on(signal, handler);
    return [signal, handler];
  });
  return () => {
    for (const [signal, handler] of handlers) process.off(signal, handler);
  };
}

function hasTerminal() {
  try {
    closeSync(openSync('/dev/tty', 'r'));
    return true;
  } catch {
    return false;
  }
}

function splitLines(stream, onLine) {
  let rest = '';
  stream.setEncoding('utf8');
  stream.on('data', (text) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop();
    for (const line of lines) onLine(line);
  });
  stream.on('end', () => {
    if (rest) onLine(rest);
  });
}
