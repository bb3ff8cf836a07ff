"""`python -m pipeline.data check|convert|stats PATH…`, `python -m pipeline.data diff OLD NEW`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.data import commands
from pipeline.data.formats import FORMATS
from pipeline.errors import PipelineError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.data")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("check", "convert", "stats", "diff"):
        below = verbs.add_parser(verb)
        below.add_argument("paths", nargs="*", type=Path, default=[Path("training_data")])
        if verb == "check":
            below.add_argument("--format", choices=FORMATS, default="text")
    arguments = parser.parse_args()
    try:
        if arguments.verb == "check":
            return commands.check_command(arguments.paths, arguments.format)
        if arguments.verb == "diff" and len(arguments.paths) == 2:
            return commands.diff_command(*arguments.paths)
        if arguments.verb == "convert":
            return commands.convert_command(arguments.paths)
        return commands.stats_command(arguments.paths)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
