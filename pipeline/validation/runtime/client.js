/**
 * The app's agent on llama.rn's interface: it keeps the history, asks the model, finds the commands with the app's
 * pattern, strips them from what players see, and hands the results back as <TOOLCALL>. The dice are thrown outside.
 *
 * argv: the folder with node_modules. stdin: a line {model, threads, system, players, turns, tokens}, then a line
 * {results} for each reply. stdout: lines that begin with "@ ": {loaded, version, build}, {prompt}, and each reply.
 */
import { createRequire } from 'node:module';
import path from 'node:path';
import { createInterface } from 'node:readline';

const PATTERN = /\[(\w+):([^\]]+)\]/g; // the app's own
const CHAIN = 3; // results fed back before the player speaks again

const require = createRequire(path.join(path.resolve(process.argv[2]), 'package.json'));
const { loadModel, BuildInfo } = require('@fugood/llama.node');
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const write = (value) => process.stdout.write(`@ ${JSON.stringify(value)}\n`);

const game = await read();
const context = await loadModel({ model: game.model, n_ctx: 2048, n_batch: 32, n_gpu_layers: 99, n_threads: game.threads });
const { version } = require('@fugood/llama.node/package.json');
write({ loaded: context.getModelInfo().desc, version, build: BuildInfo });

const messages = [{ role: 'system', content: game.system }];
const opening = [...messages, { role: 'user', content: game.players[0] }];
write(await context.getFormattedChat(opening, undefined, { jinja: true }));

let turns = 0;
for (const player of game.players) {
  let said = player;
  for (let chain = 0; chain < CHAIN && said && turns < game.turns; chain += 1) {
    turns += 1;
    const answer = await reply(said);
    write(answer);
    const { results } = await read();
    said = results.length > 0 ? `<TOOLCALL>${results.join('\n')}</TOOLCALL>` : '';
  }
}
process.exit(0);

async function reply(player) {
  messages.push({ role: 'user', content: player });
  const { text, stopped_eos } = await context.completion({ messages, jinja: true, n_predict: game.tokens, temperature: 0 });
  messages.push({ role: 'assistant', content: text });
  const calls = [...text.matchAll(PATTERN)].map(([, tool, given]) => [tool.toLowerCase(), given.trim()]);
  return { player, reply: text, shown: text.replace(PATTERN, '').trim(), calls, stopped: stopped_eos };
}

async function read() {
  const { value, done } = await lines.next();
  return done ? process.exit(0) : JSON.parse(value);
}
