/** pnpm run train: markdown in, a proven Dungeon Master GGUF out. */
import { exitWith } from './launcher/failure.js';
import { launch } from './launcher/run.js';

await exitWith(() => launch(['train'], process.argv.slice(2)));
