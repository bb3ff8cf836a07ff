/**
 * Where to run and on what: a pure function from facts (host.js) to a plan with its reasons.
 *
 * plan = {where: 'native'|'container', device: 'cuda'|'metal'|'cpu', lock, reasons: [text]}
 *      or {refusal: {what, fix, code}, reasons}
 */
const PLACES = ['native', 'container'];

/** `asked` is the flag or the environment variable's value with its `source`, or nothing. */
export function makePlan(facts, asked = {}) {
  const refusal = refuse(facts, asked);
  if (refusal) return { refusal, reasons: [] };
  const { where, reasons } = place(facts, asked);
  const { device, reason } = pickDevice(facts, where);
  return { where, device, lock: device, reasons: [...reasons, reason] };
}

function refuse(facts, { where, source }) {
  const platform = facts.platform.value;
  if (platform === 'win32') {
    return {
      what: 'Windows itself cannot run the training tools',
      fix: 'use WSL: run `wsl --install` in a terminal, open the Linux it gives, and clone and train there (NVIDIA GPUs work)',
      code: 1,
    };
  }
  if (platform !== 'linux' && platform !== 'darwin') {
    return { what: `${platform} is not supported`, fix: 'use Linux, macOS, or Windows with WSL', code: 1 };
  }
  if (where && !PLACES.includes(where)) {
    return { what: `${source} is ${JSON.stringify(where)}`, fix: `give one of: ${PLACES.join(', ')}`, code: 2 };
  }
  if (where === 'container' && !(facts.docker.value && facts.dockerfile.value)) {
    const missing = facts.docker.value ? facts.dockerfile : facts.docker;
    return {
      what: `${source} asks for a container: ${missing.reason}`,
      fix: 'start Docker, or leave it out to run natively',
      code: 1,
    };
  }
  if (isIntelMac(facts) && !where && !canContain(facts)) {
    return {
      what: 'PyTorch has no wheels for Intel Macs since 2.3, and no container can be used instead',
      fix: `start Docker and run again (${facts.docker.reason}); --where native tries anyway`,
      code: 1,
    };
  }
  return null;
}

function place(facts, { where, source }) {
  if (where) return { where, reasons: [`${where}: ${source} says so`] };
  if (isIntelMac(facts)) {
    return { where: 'container', reasons: ['container: PyTorch has no wheels for Intel Macs since 2.3'] };
  }
  if (facts.appleSilicon.value) {
    return { where: 'native', reasons: ['native: Docker cannot reach an Apple GPU'] };
  }
  if (!facts.nvidia.value) return { where: 'native', reasons: ['native: no GPU that a container could be given'] };
  if (canContain(facts) && facts.nvidiaToolkit.value) {
    return { where: 'container', reasons: [`container: ${facts.docker.reason}, ${facts.nvidiaToolkit.reason}`] };
  }
  const missing = [facts.docker, facts.nvidiaToolkit, facts.dockerfile].find((fact) => !fact.value);
  return { where: 'native', reasons: [`native: a container would do, but ${missing.reason}`] };
}

function pickDevice(facts, where) {
  if (facts.nvidia.value) {
    if (where === 'native' || facts.nvidiaToolkit.value) {
      return { device: 'cuda', reason: `cuda: ${facts.nvidia.value}, ${facts.nvidia.reason}` };
    }
    return { device: 'cpu', reason: `cpu: the container cannot be given the GPU: ${facts.nvidiaToolkit.reason}` };
  }
  if (facts.appleSilicon.value) {
    if (where === 'native') return { device: 'metal', reason: `metal: ${facts.appleSilicon.reason}` };
    return { device: 'cpu', reason: 'cpu: Docker cannot reach an Apple GPU' };
  }
  return { device: 'cpu', reason: `cpu: ${isIntelMac(facts) ? facts.appleSilicon.reason : facts.nvidia.reason}` };
}

function canContain(facts) {
  return facts.docker.value && facts.dockerfile.value;
}

function isIntelMac(facts) {
  return facts.platform.value === 'darwin' && !facts.appleSilicon.value;
}
