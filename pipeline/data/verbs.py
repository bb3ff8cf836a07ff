"""`data check`, `convert`, `stats` and `diff` as verbs of the command line; the work is in commands.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(no_args_is_help=True, help="Check, convert and count training data.")
CORPUS = Path("training_data")
Paths = Annotated[list[Path] | None, typer.Argument(help="Files or folders; training_data when left out.")]


@data.command("check")
def data_check(
    paths: Paths = None, format_: Annotated[str, typer.Option("--format", help="text, json, github or sarif.")] = "text"
) -> None:
    """Every fault of every file at once; exit 1 on errors, 0 with warnings."""
    from pipeline.data.commands import check_command

    raise typer.Exit(check_command(paths or [CORPUS], format_))


@data.command("convert")
def data_convert(paths: Annotated[list[Path], typer.Argument(help="Files in any dialect the app uses.")]) -> None:
    """Rewrite files into the canonical form."""
    from pipeline.data.commands import convert_command

    raise typer.Exit(convert_command(paths))


@data.command("stats")
def data_stats(paths: Paths = None) -> None:
    """Counts per category, tool, skill and turn type."""
    from pipeline.data.commands import stats_command

    raise typer.Exit(stats_command(paths or [CORPUS]))


@data.command("diff")
def data_diff(old: Path, new: Path) -> None:
    """What changed in the training data between two runs."""
    from pipeline.data.commands import diff_command

    raise typer.Exit(diff_command(old, new))
