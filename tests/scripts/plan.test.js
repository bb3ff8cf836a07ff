import assert from 'node:assert/strict';
import test from 'node:test';
import { makePlan } from '../../scripts/launcher/plan.js';

const yes = (value, reason = 'it is there') => ({ value, reason });
const no = (reason, value = false) => ({ value, reason });

const plain = {
  platform: yes('linux'),
  arch: yes('x64'),
  wsl: no('not WSL'),
  appleSilicon: no('not macOS'),
  nvidia: no('no NVIDIA GPU', null),
  docker: no('there is no docker command'),
  nvidiaToolkit: no('no Docker engine to ask'),
  dockerfile: yes(true),
};
const gpu = { nvidia: yes('RTX 4090', 'nvidia-smi lists it, driver 580.1') };
const engine = { docker: yes(true, 'engine 28.1 answers') };
const toolkit = { nvidiaToolkit: yes(true, 'the engine has the nvidia runtime') };
const mac = { platform: yes('darwin'), arch: yes('arm64'), appleSilicon: yes(true, 'macOS on arm64') };
const intelMac = { platform: yes('darwin'), appleSilicon: no('macOS on an Intel processor') };
const flag = (where) => ({ where, source: '--where' });

const table = [
  ['Linux, NVIDIA, Docker and toolkit', { ...gpu, ...engine, ...toolkit }, {}, 'container', 'cuda', 'nvidia runtime'],
  ['Linux, NVIDIA, no Docker', gpu, {}, 'native', 'cuda', 'there is no docker command'],
  ['Linux, NVIDIA, Docker without toolkit', { ...gpu, ...engine }, {}, 'native', 'cuda', 'no Docker engine to ask'],
  [
    'Linux, NVIDIA, no Dockerfile',
    { ...gpu, ...engine, ...toolkit, dockerfile: no('no Dockerfile') },
    {},
    'native',
    'cuda',
    'no Dockerfile',
  ],
  ['Apple silicon', { ...mac, ...engine }, {}, 'native', 'metal', 'Docker cannot reach an Apple GPU'],
  ['Intel Mac with Docker', { ...intelMac, ...engine }, {}, 'container', 'cpu', 'no wheels for Intel Macs'],
  ['Intel Mac, natively on demand', intelMac, flag('native'), 'native', 'cpu', 'Intel'],
  ['plain CPU', {}, {}, 'native', 'cpu', 'no NVIDIA GPU'],
  ['plain CPU with Docker', engine, {}, 'native', 'cpu', 'no GPU that a container could be given'],
  ['WSL, NVIDIA', { wsl: yes(true), ...gpu }, {}, 'native', 'cuda', 'RTX 4090'],
  ['WSL, no GPU', { wsl: yes(true) }, {}, 'native', 'cpu', 'no NVIDIA GPU'],
  ['--where container on a CPU', engine, flag('container'), 'container', 'cpu', '--where says so'],
  ['--where native on a GPU', { ...gpu, ...engine, ...toolkit }, flag('native'), 'native', 'cuda', '--where says so'],
  [
    '--where container on Apple silicon',
    { ...mac, ...engine },
    flag('container'),
    'container',
    'cpu',
    'cannot reach an Apple GPU',
  ],
  [
    '--where container, no toolkit',
    { ...gpu, ...engine },
    flag('container'),
    'container',
    'cpu',
    'cannot be given the GPU',
  ],
  [
    'the environment variable',
    engine,
    { where: 'container', source: 'DM_FORGE_WHERE' },
    'container',
    'cpu',
    'DM_FORGE_WHERE says so',
  ],
];

for (const [name, facts, asked, where, device, reason] of table) {
  test(`${name}: ${where} on ${device}, and the reason is said`, () => {
    const plan = makePlan({ ...plain, ...facts }, asked);
    assert.equal(plan.refusal, undefined);
    assert.deepEqual([plan.where, plan.device, plan.lock], [where, device, device]);
    assert.ok(plan.reasons.join('\n').includes(reason), plan.reasons.join('\n'));
  });
}

const refusals = [
  ['Windows', { platform: yes('win32') }, {}, 'Windows', 'WSL', 1],
  ['FreeBSD', { platform: yes('freebsd') }, {}, 'freebsd', 'Linux', 1],
  ['an Intel Mac without Docker', intelMac, {}, 'Intel Macs', 'start Docker', 1],
  ['an unknown place', {}, flag('cloud'), '--where is "cloud"', 'native, container', 2],
  ['a container without Docker', {}, flag('container'), 'there is no docker command', 'natively', 1],
  [
    'a container without Dockerfile',
    { ...engine, dockerfile: no('no Dockerfile') },
    flag('container'),
    'no Dockerfile',
    'natively',
    1,
  ],
];

for (const [name, facts, asked, what, fix, code] of refusals) {
  test(`${name} is refused with what to do`, () => {
    const { refusal } = makePlan({ ...plain, ...facts }, asked);
    assert.ok(refusal.what.includes(what), refusal.what);
    assert.ok(refusal.fix.includes(fix), refusal.fix);
    assert.equal(refusal.code, code);
  });
}
