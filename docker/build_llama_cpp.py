"""Build llama.cpp inside the image: into the build's own cache, then a copy of what runs to the folder given."""

import shutil
import sys
from pathlib import Path

from pipeline.environment import llama_cpp
from pipeline.progress import Reporter, pick_mode

cache, target = map(Path, sys.argv[1:])
with Reporter(pick_mode(False)).stage("llama.cpp") as stage:
    built = llama_cpp.ensure(cache, stage)
shutil.copytree(built.binaries.parent, target)
