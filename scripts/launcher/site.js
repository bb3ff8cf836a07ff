/** What this machine's own pip needs to reach its packages, for builds and containers: nothing of it ends in an image. */
import { spawnSync } from 'node:child_process';
import { existsSync, statSync } from 'node:fs';

const CERTIFICATES = ['PIP_CERT', 'SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE', 'NODE_EXTRA_CA_CERTS'];
const PASSED = ['HF_TOKEN', 'HF_ENDPOINT', 'PIP_INDEX_URL', 'HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY'];

/** {ca, wheels}: a certificate bundle and a folder of wheels, where the environment or pip's settings name one. */
export function siteOf(env = process.env) {
  const ca = CERTIFICATES.map((name) => env[name]).find((file) => file && existsSync(file));
  const links = env.PIP_FIND_LINKS ?? pipSetting('global.find-links', env);
  const wheels = links.split(/\s+/).find((link) => link.startsWith('/') && isFolder(link));
  return { ca, wheels };
}

/** Variables of the caller that a container with a network gets: by name, so that no value is in an argument. */
export function passedOn(env = process.env) {
  return [...PASSED, ...PASSED.map((name) => name.toLowerCase())].filter((name) => env[name]);
}

function pipSetting(name, env) {
  const answer = spawnSync('python3', ['-m', 'pip', 'config', 'get', name], { env, encoding: 'utf8', timeout: 20_000 });
  return answer.status === 0 ? answer.stdout.trim() : '';
}

function isFolder(name) {
  return existsSync(name) && statSync(name).isDirectory();
}
