"""How the tests start things: through the launcher, as people do, or through the engine with the launcher's limits."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE = "debian:bookworm-slim"
STRANGER = 12345  # a user that neither the host nor the image knows
# The quick preset made tinier: a handful of steps, each with a checkpoint.
SMOKE = (
    *("--preset", "quick", "--threads", "2"),
    *("--set", "training.max_tokens=5000", "--set", "training.batch_tokens=512"),
    *("--set", "training.checkpoint_interval=1", "--set", "data.drill_lines=60"),
    *("--set", "validation.conversations=2", "--set", "validation.baseline_conversations=1"),
)


def launch(*words, timeout=2400):
    command = ["node", "scripts/launcher/run.js", *words, "--where", "container"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


def bake(*words, **variables):
    """`pnpm run bake …`; everything it says is shown when it fails."""
    command = ["node", "scripts/bake.js", "--progress", "plain", *words]
    answer = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=2400, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


def tags(client):
    return {tag for image in client.images.list() for tag in image.tags}


def start(client, folder, *words):
    """A container as the launcher starts it, run by a stranger and left in the background."""
    import docker

    def mount(name, read_only):
        return docker.types.Mount(f"/dm-forge/{name}", str(folder / name), type="bind", read_only=read_only)

    return client.containers.run(
        "dm-forge:runtime-cpu",
        list(words),
        detach=True,
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        network_mode="none",
        user=f"{STRANGER}:{STRANGER}",
        tmpfs={"/tmp": "rw,exec,nosuid,nodev"},
        mounts=[
            mount("training_data", True),
            mount("configs", True),
            mount("artifacts", False),
            mount("assets", False),
        ],
    )
