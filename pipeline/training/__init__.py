"""From conversations and a base model to an adapter: TRL's loop with our batches, our loss and our checkpoints."""

from __future__ import annotations

import os

# Read by OpenMP when torch is first imported. By default a thread that waits for another spins on its core; where
# anything else wants that core, two threads then train 7 times slower (20 against 150 tokens/s on two busy cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
