/** pnpm run bake TARGET…: docker buildx bake, with what this machine's own pip needs to reach its packages. */
import { bake } from './launcher/container.js';
import { exitWith } from './launcher/failure.js';
import { ROOT } from './launcher/run.js';

await exitWith(() => bake(ROOT, process.argv.slice(2)));
