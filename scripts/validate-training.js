/** pnpm run train:validate: check the training data and the newest model. */
import { exitWith } from './launcher/failure.js';
import { launch } from './launcher/run.js';

await exitWith(() => launch(['validate'], process.argv.slice(2)));
