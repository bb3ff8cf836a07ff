/** What is this machine: every fact is {value, reason}. Nothing here decides anything; plan.js does. */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

const PYTHONS = ['python3', 'python3.13', 'python3.12', 'python3.11', 'python'];
const PROBE = [
  'import importlib.util as u, json, platform, sys',
  'missing = [m for m in ("venv", "ensurepip") if u.find_spec(m) is None]',
  'print(json.dumps([list(sys.version_info[:3]), sys.executable, platform.machine(), missing]))',
].join('\n');

/**
 * Every fact the plan needs. Docker is asked only where its answer can matter (`docker: true`, a GPU, an Intel Mac),
 * for it may take seconds to say that it is not running.
 */
export function detect({ root, env = process.env, docker = false, python = false }) {
  const nvidia = detectNvidia();
  const appleSilicon = detectAppleSilicon();
  const isIntelMac = process.platform === 'darwin' && !appleSilicon.value;
  const matters = docker || nvidia.value || isIntelMac;
  const engine = matters ? detectDocker() : fact(false, 'not asked: nothing here depends on it');
  return {
    platform: fact(process.platform, `Node.js reports ${process.platform}`),
    arch: fact(process.arch, `Node.js reports ${process.arch}`),
    wsl: detectWsl(),
    appleSilicon,
    nvidia,
    docker: fact(Boolean(engine.value), engine.reason),
    nvidiaToolkit: detectToolkit(engine.value),
    dockerfile: detectDockerfile(root),
    memory: fact(os.totalmem(), `${(os.totalmem() / 1e9).toFixed(1)} GB of main memory`),
    cores: fact(os.availableParallelism(), `${os.availableParallelism()} cores are free to use`),
    pythons: python ? findPythons(env) : [],
  };
}

/** Python interpreters, the preferred one first: {command, version: [3, 11, 7], path, machine, missing} or {command, fault}. */
export function findPythons(env = process.env) {
  const commands = env.DM_FORGE_PYTHON ? [env.DM_FORGE_PYTHON] : PYTHONS;
  return commands.map((command) => probePython(command, env)).filter((found) => found !== null);
}

function probePython(command, env) {
  const answer = spawnSync(command, ['-c', PROBE], { env, encoding: 'utf8', timeout: 20_000 });
  if (answer.error?.code === 'ENOENT' && command !== env.DM_FORGE_PYTHON) return null;
  if (answer.error) return { command, fault: `cannot be started (${answer.error.code})` };
  if (answer.status === 127 && command !== env.DM_FORGE_PYTHON) return null; // a version manager's empty shim
  try {
    const [version, executable, machine, missing] = JSON.parse(answer.stdout);
    return { command, version, path: executable, machine, missing };
  } catch {
    const old = spawnSync(command, ['--version'], { env, encoding: 'utf8', timeout: 20_000 });
    const match = /Python (\d+)\.(\d+)\.(\d+)/.exec(`${old.stdout}${old.stderr}`);
    if (match) return { command, version: match.slice(1).map(Number), path: command, missing: [] };
    const said = `${answer.stderr}`.trim().split('\n').at(-1);
    return { command, fault: `ends with ${answer.status ?? answer.signal}${said ? `: ${said}` : ''}` };
  }
}

function detectWsl() {
  const release = process.platform === 'linux' ? os.release() : '';
  const found = /microsoft/i.test(release);
  return fact(found, found ? `the kernel is ${release}` : 'the kernel is not WSL’s');
}

function detectAppleSilicon() {
  if (process.platform !== 'darwin') return fact(false, 'not macOS');
  if (process.arch === 'arm64') return fact(true, 'macOS on arm64');
  const translated = ask('sysctl', ['-n', 'sysctl.proc_translated']).trim() === '1';
  return translated
    ? fact(true, 'macOS on arm64 (this Node.js runs under Rosetta)')
    : fact(false, 'macOS on an Intel processor');
}

function detectNvidia() {
  const answer = ask('nvidia-smi', ['--query-gpu=name,driver_version', '--format=csv,noheader']).trim();
  if (answer) {
    const [name, driver] = answer
      .split('\n')[0]
      .split(',')
      .map((part) => part.trim());
    return fact(name, `nvidia-smi lists it, driver ${driver}`);
  }
  if (existsSync('/proc/driver/nvidia/version')) {
    const driver = readFileSync('/proc/driver/nvidia/version', 'utf8').split('\n')[0].trim();
    return fact('an NVIDIA GPU', `the kernel driver is loaded (${driver}), though nvidia-smi does not answer`);
  }
  return fact(null, 'nvidia-smi lists no NVIDIA GPU, and no NVIDIA driver is loaded');
}

/** The engine's own description of itself, or a reason why there is none. */
function detectDocker() {
  const answer = spawnSync('docker', ['info', '--format', '{{json .}}'], { encoding: 'utf8', timeout: 10_000 });
  if (answer.error?.code === 'ENOENT') return fact(null, 'there is no docker command');
  if (answer.error) return fact(null, `docker info does not answer (${answer.error.code})`);
  try {
    const info = JSON.parse(answer.stdout);
    if (info.ServerVersion && !info.ClientInfo?.Plugins?.some((plugin) => plugin.Name === 'buildx'))
      return fact(null, `engine ${info.ServerVersion} answers, but docker has no buildx plugin to build images with`);
    if (info.ServerVersion) return fact(info, `engine ${info.ServerVersion} answers`);
    return fact(
      null,
      `no engine answers: ${info.ServerErrors?.[0] ?? (answer.stderr.trim().split('\n')[0] || 'docker info names none')}`,
    );
  } catch {
    return fact(null, `no engine answers: ${answer.stderr.trim().split('\n')[0] || `exit ${answer.status}`}`);
  }
}

function detectToolkit(info) {
  if (!info) return fact(false, 'no Docker engine to ask');
  if (info.Runtimes?.nvidia) return fact(true, 'the engine has the nvidia runtime');
  const devices = (info.DiscoveredDevices ?? []).map((device) => device.ID ?? '');
  if (devices.some((device) => device.startsWith('nvidia.com/gpu')))
    return fact(true, 'the engine knows nvidia.com/gpu (CDI)');
  for (const folder of info.CDISpecDirs ?? []) {
    if (existsSync(folder) && readdirSync(folder).some((name) => /^nvidia.*\.(yaml|json)$/.test(name))) {
      return fact(true, `${folder} describes the GPU (CDI)`);
    }
  }
  return fact(false, 'the engine has neither the nvidia runtime nor a CDI description of the GPU');
}

function detectDockerfile(root) {
  const found = existsSync(path.join(root, 'Dockerfile'));
  return fact(found, found ? 'this checkout has a Dockerfile' : 'this checkout has no Dockerfile');
}

function ask(command, args) {
  const answer = spawnSync(command, args, { encoding: 'utf8', timeout: 10_000 });
  return answer.status === 0 ? answer.stdout : '';
}

function fact(value, reason) {
  return { value, reason };
}
