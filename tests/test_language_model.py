"""What a process that loads a model has settled before it computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import tiny

ROOT = Path(__file__).resolve().parent.parent
# In a process of its own: only there is a first call the first.
PROGRAM = """
import sys
from pathlib import Path
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from pipeline import language_model

sizes = {}

class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if isinstance(args[0] if args else None, torch.Tensor) and args[0].dtype == torch.float32:
            sizes.setdefault(function.overloadpacket.__name__.rstrip("_"), []).append(args[0].numel())
        return function(*args, **(kwargs or {}))

with Watch(), torch.no_grad():
    model, _ = language_model.load(Path(sys.argv[1]))
    model(torch.zeros((1, 4000), dtype=torch.long), logits_to_keep=1)
assert max(sizes["cos"]) > 32768, sizes["cos"]
print(*(name for name in language_model._OF_MKL if sizes.get(name, [1 << 20])[0] > 2048))
"""


def test_no_function_of_mkl_is_first_called_by_several_threads(smollm2, tmp_path):
    """PyTorch divides work of 2,048 numbers and more among its threads."""
    folder = tiny.checkpoint(tmp_path / "tiny", "llama", smollm2.path)
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
