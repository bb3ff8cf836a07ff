"""What one does with a finished model: judge any file, play with it, see what is shipped, go back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.data.dataset import Conversation, read_conversations
from pipeline.data.scenario import Kind, Scenario
from pipeline.errors import DataError, MachineError, UsageError, ValidationError
from pipeline.integration import store
from pipeline.progress import Reporter


def evaluate(model: Path, paths: Sequence[Path], config: Config, reporter: Reporter, threads: int) -> dict[str, Any]:
    """Judge a GGUF on scenario files, folders of them, or the held-out part of a dataset.jsonl."""
    from pipeline.environment import llama_cpp
    from pipeline.validation.judge_file import judge_file, lines

    conversations = conversations_of(paths or [config.data.folder], held_out_only=not paths)
    with reporter.stage("llama.cpp") as stage:
        llama = llama_cpp.ensure(config.cache_dir, stage)
    with reporter.stage("eval", f"{model.name} plays {len(conversations)} conversations") as stage:
        result = judge_file(model, conversations, llama, config.validation, threads, stage)
    reporter.result(lines(result), **result)
    return result


def conversations_of(paths: Sequence[Path], held_out_only: bool = False) -> list[Conversation]:
    """Every scenario in the paths, in any dialect that can be read, or those that training never sees.

    Raises DataError listing the faults where none can be read, UsageError where a path is missing.
    """
    from pipeline.data.split import split_of_scenario

    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise UsageError(
            f"there is no {', '.join(missing)}", where="eval", fix="give scenario files or folders of them"
        )
    found = [
        item for path in paths if path.suffix == ".jsonl" for item in read_conversations(path) if item.split == "test"
    ]
    scenarios, faults = _scenarios([path for path in paths if path.suffix != ".jsonl"])
    found += [_conversation(one) for one in scenarios if not held_out_only or split_of_scenario(one) == "test"]
    if faults and not found:
        listed = "\n  ".join(faults[:20])
        raise DataError(
            f"no scenario could be read:\n  {listed}", where="eval", fix="`pnpm run data:check` explains each"
        )
    return found


def _scenarios(paths: list[Path]) -> tuple[list[Scenario], list[str]]:
    """The scenarios in files and folders, and why the others could not be read."""
    from pipeline.data.dialect import convert_source
    from pipeline.data.drills import is_drills
    from pipeline.data.faults import Faults, errors
    from pipeline.data.source import discover, read
    from pipeline.data.tools import load_vocabulary

    scenarios: list[Scenario] = []
    unread: list[str] = []
    for entry in discover(paths) if paths else ():
        faults = Faults(entry.name)
        source = read(entry, faults)
        if source is None or is_drills(source):
            continue
        converted = convert_source(source, load_vocabulary())
        if converted.scenario is not None and any(converted.scenario.of(Kind.DM)):
            scenarios.append(converted.scenario)
        else:
            unread += [str(fault) for fault in errors(converted.faults)]
    return scenarios, unread


def _conversation(scenario: Scenario) -> Conversation:
    from pipeline.data.chat import messages_of

    messages = messages_of(scenario)
    return Conversation(scenario.id, scenario.path, scenario.line, scenario.category, "scenario", "test", 1.0, messages)


def play(model: Path | None, config: Config, reporter: Reporter, threads: int, seed: int) -> None:
    """A game in the terminal with a GGUF, or with the shipped one."""
    from pipeline.environment import llama_cpp
    from pipeline.integration.play import PARTY
    from pipeline.integration.play import play as play_game

    chosen = _given_or_shipped(model, config, "play")
    with reporter.stage("llama.cpp") as stage:
        llama = llama_cpp.ensure(config.cache_dir, stage)
    print(PARTY, "\nSay what you do; an empty line ends the game.\n", sep="\n")
    play_game(chosen, llama, threads, _typed(), print, seed=seed)


def runtime_check(model: Path | None, config: Config, reporter: Reporter, threads: int) -> dict[str, Any]:
    """Have a client that is not ours play with a GGUF. Raises ValidationError where it cannot, MachineError without it."""
    from pipeline.environment import llama_cpp
    from pipeline.validation import runtime

    chosen = _given_or_shipped(model, config, "runtime-check")
    conversations = conversations_of([config.data.folder], held_out_only=True)
    with reporter.stage("llama.cpp") as stage:
        llama = llama_cpp.ensure(config.cache_dir, stage)
    with reporter.stage("runtime", f"{chosen.name} in a client that is not ours") as stage:
        found = runtime.check(chosen, conversations, llama, config.cache_dir, threads)
        if found["state"] == "failed":
            raise ValidationError(
                found["reason"], where=str(chosen), fix="choose a base that the client's runtime loads"
            )
        if found["state"] == "skipped":
            raise MachineError(found["reason"], where="runtime-check", fix="mend that and run again")
        stage.summary = found["reason"]
    reporter.result(runtime.lines(found), **found)
    return found


def _given_or_shipped(model: Path | None, config: Config, verb: str) -> Path:
    shipped = store.current(config.models_dir)
    chosen = model or (store.model_path(config.models_dir, shipped) if shipped else None)
    if chosen is None or not chosen.is_file():
        raise UsageError(f"there is no model {chosen or 'to take'}", where=verb, fix="run `pnpm run train` first")
    return chosen


def shelf(config: Config) -> list[str]:
    """The shipped model and those that were shipped before, as lines."""
    current = store.current(config.models_dir)
    rows = [("shipped", current)] if current else []
    rows += [("kept", item) for item in store.versions(config.models_dir)]
    return [
        f"{state:<8} {item['model_name']}  run {item['run_id']}  sha256 {item['sha256'][:12]}  "
        f"tool-call accuracy {item['tool_call_accuracy']:.3f}  {item['training_date']}"
        for state, item in rows
    ] or ["no model has been promoted yet"]


def rollback(config: Config, version: str | None) -> str:
    """Ship an earlier model again; says which. The app's configuration follows."""
    from pipeline.integration import cactus

    item = store.rollback(config.models_dir, version)
    model = store.model_path(config.models_dir, item)
    projector = model.with_name(f"{model.stem}-mmproj.gguf")
    cactus.write(config.models_dir, cactus.config(model, projector if projector.is_file() else None))
    return f"{item['model_name']} of run {item['run_id']} is shipped again"


def _typed() -> Iterator[str]:
    while True:
        try:
            line = input("> ")
        except EOFError:
            return
        if not line.strip():
            return
        yield line
