"""Make the hash-pinned locks from pyproject.toml: python requirements/compile.py [--upgrade]

Three locks carry everything training needs, one for each kind of machine; dev.txt holds what developers
need on top of any of them, and container.txt what a devcontainer needs on top of that. nvcc.txt is what the CUDA image's
build compiles with, on top of cuda.txt. A lock names no address: where packages come from is the user's pip configuration.

torch needs care on x86-64 Linux. The registry's wheel wants CUDA packages; the CPU wheel has the local version
`+cpu` and is found only where pip's find-links or index offer it. With both digests on one requirement pip prefers the
registry's, so the cpu lock asks for `+cpu` there, and the launcher falls back to the CUDA lock where it is not offered.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"

# sha256 of torch-2.13.0+cpu wheels; verified against the wheels themselves.
TORCH_CPU_WHEELS = {
    "2.13.0": {"cp311-cp311-manylinux_2_28_x86_64": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"},
}
CUDA_PACKAGES = re.compile(r"^(nvidia-|cuda-|triton)")


def compile_lock(extras: list[str], platform: str, *options: str) -> str:
    """One platform's lock as text: `name==version --hash=…` entries, sorted, without comments or addresses."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--quiet", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--python-version", "3.11", "--python-platform", platform]
    command += [part for extra in extras for part in ("--extra", extra)] + list(options)
    # torch has wheels for macOS 14 and newer only.
    environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def without_cuda_packages(lock: str) -> str:
    entries = re.split(r"\n(?=\S)", lock.rstrip("\n"))
    return "\n".join(entry for entry in entries if not CUDA_PACKAGES.match(entry)) + "\n"


def names(lock: str) -> set[str]:
    return set(re.findall(r"^([A-Za-z0-9][\w.-]*)==", lock, re.MULTILINE))


def without_entries(lock: str, unwanted: set[str]) -> str:
    entries = re.split(r"\n(?=\S)", lock.rstrip("\n"))
    return "\n".join(entry for entry in entries if entry.partition("==")[0] not in unwanted) + "\n"


def with_cpu_wheels(lock: str) -> str:
    """Ask for the `+cpu` wheel on x86-64, for the registry's (which is a CPU wheel there) on other processors."""
    found = re.search(r"^torch==(\S+) \\\n((?:    --hash=\S+(?: \\)?\n)+)", lock, re.MULTILINE)
    if found is None or found[1] not in TORCH_CPU_WHEELS:
        raise SystemExit(f"no CPU wheel is known for torch {found and found[1]}: add it to TORCH_CPU_WHEELS")
    hashes = " \\\n".join(f"    --hash=sha256:{digest}" for digest in TORCH_CPU_WHEELS[found[1]].values())
    own = f'torch=={found[1]}+cpu ; platform_machine == "x86_64" \\\n{hashes}\n'
    other = f'torch=={found[1]} ; platform_machine != "x86_64" \\\n{found[2]}'
    return lock.replace(found[0], own + other)


def main() -> None:
    upgrade = ["--upgrade"] if "--upgrade" in sys.argv[1:] else []
    cuda = compile_lock(["cuda"], "x86_64-manylinux_2_28", *upgrade)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        pins.write(re.sub(r" \\\n(\s+--hash=\S+( \\)?\n)+", "\n", cuda))
        pins.flush()
        same = ("--constraint", pins.name)
        locks = {
            "cuda": cuda,
            "cpu": with_cpu_wheels(without_cuda_packages(compile_lock([], "x86_64-manylinux_2_28", *same))),
            "metal": compile_lock([], "aarch64-apple-darwin", *same),
        }
        developers = compile_lock(["dev"], "x86_64-manylinux_2_28", *same)
        locks["dev"] = without_entries(developers, names(cuda))
        container = compile_lock(["container"], "x86_64-manylinux_2_28", *same)
        locks["container"] = without_entries(container, names(cuda) | names(developers))
        locks["nvcc"] = without_entries(compile_lock(["nvcc"], "x86_64-manylinux_2_28", *same), names(cuda))
    for name, text in locks.items():
        (LOCKS / f"{name}.txt").write_text(f"# Made by requirements/compile.py from pyproject.toml.\n{text}")
        print(f"requirements/{name}.txt: {len(re.findall('^[a-zA-Z]', text, re.MULTILINE))} packages")


if __name__ == "__main__":
    main()
