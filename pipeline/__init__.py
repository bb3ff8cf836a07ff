"""dm-forge: markdown Dungeons & Dragons scenarios in, a proven Dungeon Master GGUF out."""

import os

# How OpenMP's threads wait for each other; read when torch is first imported, and by llama.cpp's programs. A thread that
# spins holds a core: where anything else wants it, training was 7 times slower. One that sleeps at once is woken a
# thousand times a second. Measured on two cores, tokens/s alone and beside two busy programs: asleep at once 462 and
# 318, after 1,000 turns 547 and 249, after 3,000 turns 580 and 225.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# oneDNN keeps the code it made for the last so many shapes, about half a megabyte each; a training run has some hundreds.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")

__version__ = "0.1.0"
