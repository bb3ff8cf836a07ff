/** A known failure: what is wrong with the value shown, where, and what to do next. Printed without a stack. */
export class Failure extends Error {
  constructor(what, { where, fix, code = 1 } = {}) {
    super(what);
    this.where = where;
    this.fix = fix;
    this.code = code;
  }

  toString() {
    const lines = [`error: ${this.message}`];
    if (this.where) lines.push(`  where: ${this.where}`);
    if (this.fix) lines.push(`  to do: ${this.fix}`);
    return lines.join('\n');
  }
}

/** A child was ended by Ctrl-C or another signal: `code` is the shell's 128 + n. */
export function interrupted(code) {
  return new Failure('interrupted; run the same command again to go on', { code });
}

/** Run a verb's main function and turn what comes out of it into the exit code. */
export async function exitWith(main) {
  try {
    process.exitCode = await main();
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    process.stderr.write(`${error}\n`);
    process.exitCode = error.code;
  }
}
