"""The verbs. Thin on purpose: flags in, one call, one place that turns a known failure into words and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.data.verbs import data
from pipeline.errors import Interrupted, PipelineError, UsageError
from pipeline.progress import Reporter, pick_mode

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Markdown Dungeons & Dragons scenarios in, a proven Dungeon Master GGUF out.",
)
app.add_typer(data, name="data")
models = typer.Typer(no_args_is_help=True, help="What is shipped, and the way back.")
app.add_typer(models, name="models")

Json = Annotated[bool, typer.Option("--json", help="One JSON event a line on stdout, for machines.")]


@app.command()
def train(
    preset: Annotated[
        str, typer.Option(help="default, quick or best: configs/train.yaml or configs/<preset>.yaml.")
    ] = "default",
    config: Annotated[Path | None, typer.Option(help="A config file instead of a preset.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model: a catalogue name, a hub id (owner/name[@commit]) or a folder.")
    ] = None,
    accept_licence: Annotated[
        list[str] | None, typer.Option(help="A licence you have read and agree to, such as gemma.")
    ] = None,
    quant: Annotated[str | None, typer.Option(help="Quantisation: Q4_K_M, Q5_K_M, Q6_K, Q8_0, or auto.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Largest file, such as 2GB.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; every core when left out.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Where runs are kept.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="The app's runtime, such as cactus@0.2: refused where it cannot load the model.")
    ] = None,
    runtime_check: Annotated[
        bool, typer.Option("--runtime-check", help="Have llama.node load the file and play a game; npm installs it.")
    ] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any config key: --set training.epochs=2")] = None,
    llama_source: Annotated[
        Path | None, typer.Option(help="A llama.cpp checkout or tar.gz of the pinned commit.")
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Go on from an adapter: latest (the promoted run's) or a run's id.")
    ] = None,
    nproc: Annotated[int, typer.Option(help="Processes that train on this machine.")] = 1,
    nnodes: Annotated[int, typer.Option(help="Machines that train; give the same command on each.")] = 1,
    rendezvous: Annotated[str | None, typer.Option(help="host:port of the first machine, which does the rest.")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="CUDA: the same bits each time, slower. A CPU has them anyway.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Train nothing: show the run in progress, or the latest one.")
    ] = False,
    train_only: Annotated[
        bool, typer.Option("--train-only", help="Stop once trained; the next run goes on from there.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Train, export, prove, measure and promote a Dungeon Master; ends with modelPath and mmprojPath."""
    from pipeline import run
    from pipeline.config import load, preset_path
    from pipeline.environment.hardware import cores
    from pipeline.flags import app_path, assign, gigabytes
    from pipeline.training.cluster import gather
    from pipeline.watch import show

    flags: dict[str, Any] = {
        "base": base,
        "seed": seed,
        "threads": threads,
        "output_dir": output_dir,
        "runtime": runtime,
        "accept_licences": accept_licence,
    }
    overrides = {key: value for key, value in flags.items() if value is not None} | {
        "preset": config.stem if config else preset
    }
    export = {"quantization": quant, "max_size_gb": gigabytes(max_size)}
    overrides |= (
        {"export": chosen} if (chosen := {key: value for key, value in export.items() if value is not None}) else {}
    )
    overrides |= {"training": {"deterministic": True}} if deterministic else {}
    for assignment in [*(["validation.runtime_check=true"] if runtime_check else []), *(set_ or [])]:
        assign(overrides, assignment)
    settings = load(config or preset_path(preset), overrides)
    if watch:
        show(settings.output_dir, pick_mode(json_output))
        return
    reporter = Reporter(pick_mode(json_output))
    cluster = gather(nproc, nnodes, rendezvous, os.environ)
    journey = run.Journey(settings, reporter, settings.threads or cores().value, llama_source, cluster, from_)
    if not cluster.leads:
        run.help_to_train(journey)
        return
    if train_only:
        with run.exclusive(settings.output_dir):
            run.learn(journey)
        return
    outcome = run.train(journey)
    model, mmproj = app_path(outcome.model), app_path(outcome.mmproj)
    lines = [f'modelPath: "{model}"', f'mmprojPath: "{mmproj}"' if mmproj else "mmprojPath: null"]
    reporter.result(lines, modelPath=model, mmprojPath=mmproj, metadata=outcome.metadata)


@app.command()
def validate(json_output: Json = False) -> None:
    """Check the training data, then the newest promoted model: its bytes, and how it plays."""
    from pipeline.config import load, preset_path
    from pipeline.environment.hardware import cores
    from pipeline.revalidate import revalidate

    settings = load(preset_path("default"))
    revalidate(settings, Reporter(pick_mode(json_output)), settings.threads or cores().value)


@app.command()
def verify(
    run: Annotated[
        str | None,
        typer.Argument(help="A run's id, the beginning of its name, or its folder; the shipped files when left out."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Build a run again from its manifest and compare every digest; or check the shipped files against their papers."""
    from pipeline import verify as verification
    from pipeline.config import load, preset_path

    settings, reporter = load(preset_path("default")), Reporter(pick_mode(json_output))
    if run is None:
        verification.shelf(settings, reporter)
    else:
        verification.verify(run, settings, reporter)


@app.command()
def setup(
    llama_source: Annotated[Path | None, typer.Option(help="A llama.cpp checkout or tar.gz.")] = None,
    base: Annotated[str | None, typer.Option(help="Also fetch this base model.")] = None,
    accept_licence: Annotated[list[str] | None, typer.Option(help="A licence you agree to, such as gemma.")] = None,
) -> None:
    """Build llama.cpp into the cache, and fetch a base: later commands find them there and need no network."""
    from pipeline.bases import fetch
    from pipeline.config import Config
    from pipeline.environment import llama_cpp

    cache, reporter = Config().cache_dir, Reporter(pick_mode(False))
    with reporter.stage("llama.cpp") as stage:
        llama_cpp.ensure(cache, stage, llama_source)
    if base:
        with reporter.stage("base", base) as stage:
            fetch.ensure(base, cache, stage, accept_licence or ())


@app.command()
def doctor() -> None:
    """Say what this machine has, what is missing, and what to do about it."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.environment.doctor import doctor as examine

    table = Table("", "what", "found", "what to do")
    findings = examine()
    for finding in findings:
        table.add_row("✓" if finding.ok else "✗", finding.name, finding.value, finding.fix if not finding.ok else "")
    Console().print(table)
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command("eval")
def evaluate(
    model: Path,
    paths: Annotated[list[Path] | None, typer.Argument(help="Scenarios; the held-out ones when left out.")] = None,
    json_output: Json = False,
) -> None:
    """Judge any GGUF on any scenarios, ours or not."""
    from pipeline.aftercare import evaluate as judge
    from pipeline.config import load, preset_path
    from pipeline.environment.hardware import cores

    settings = load(preset_path("default"))
    judge(model, paths or [], settings, Reporter(pick_mode(json_output)), settings.threads or cores().value)


@app.command("runtime-check")
def runtime_check(
    model: Annotated[Path | None, typer.Argument(help="A GGUF; the shipped one when left out.")] = None,
) -> None:
    """Have a client that is not ours (llama.node, which npm installs) load a GGUF and play a game with it."""
    from pipeline.aftercare import runtime_check as check
    from pipeline.config import load, preset_path
    from pipeline.environment.hardware import cores

    settings = load(preset_path("default"))
    check(model, settings, Reporter(pick_mode(False)), settings.threads or cores().value)


@app.command()
def play(
    model: Annotated[Path | None, typer.Argument(help="A GGUF; the shipped one when left out.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the dice.")] = 1,
) -> None:
    """Play a game in the terminal."""
    from pipeline.aftercare import play as play_game
    from pipeline.config import load, preset_path
    from pipeline.environment.hardware import cores

    settings = load(preset_path("default"))
    play_game(model, settings, Reporter(pick_mode(False)), settings.threads or cores().value, seed)


@models.command("list")
def models_list() -> None:
    """The shipped model and the ones before it."""
    from pipeline.aftercare import shelf
    from pipeline.config import load, preset_path

    print("\n".join(shelf(load(preset_path("default")))))


@models.command("rollback")
def models_rollback(
    version: Annotated[str | None, typer.Argument(help="A run's id or the beginning of a digest.")] = None,
) -> None:
    """Ship an earlier model again: the one before, or VERSION."""
    from pipeline.aftercare import rollback
    from pipeline.config import load, preset_path

    print(rollback(load(preset_path("default")), version))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context, name: Annotated[str, typer.Argument(help="A script of bench/.")]) -> None:
    """Measure a claim: each script of bench/ prints a ratio against a peer from the same run."""
    import runpy

    scripts = {path.stem: path for path in sorted(Path("bench").glob("*.py"))}
    if name not in scripts:
        raise UsageError(f"there is no benchmark {name!r}", where="bench/", fix=f"use one of: {', '.join(scripts)}")
    sys.argv = [str(scripts[name]), *context.args]
    runpy.run_path(str(scripts[name]), run_name="__main__")


def main() -> None:
    """Run a verb; a known failure becomes its words on stderr and its exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # a container that is stopped, a terminal that closes: as Ctrl-C
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)  # for those who write libraries, not for those who train
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # and in the processes that we start
    try:
        returned = app(standalone_mode=False)
        code = returned if isinstance(returned, int) else 0  # typer.Exit and Ctrl-C come back as a number
    except KeyboardInterrupt:
        code = Interrupted.exit_code
    except PipelineError as error:
        print(f"\n✗ {error}", file=sys.stderr)
        code = error.exit_code
    except Exception as error:
        code = _usage(error)
    if code == Interrupted.exit_code:
        print(
            "\ninterrupted: finished stages and the last checkpoint are kept; the same command goes on from there",
            file=sys.stderr,
        )
    sys.exit(code)


def _usage(error: Exception) -> int:
    """Typer's own complaints about flags are bad usage; anything else is a fault of ours and shows its traceback."""
    show = getattr(error, "show", None)
    if show is None:
        if type(error).__name__ == "Abort":
            return Interrupted.exit_code
        raise error
    show()
    return UsageError.exit_code
