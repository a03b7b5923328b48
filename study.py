"""Studies: one experiment.yaml, many trials.

    python study.py generate DIR      # the config and the evaluation script of each trial
    python study.py check DIR         # what of it is done, missing or stale

docs/studies.md has the format of experiment.yaml. This file parses arguments and prints.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from commands.boundary import describe_failure
from errors import ConfigError, InputError, LoopError
from loop.reports.console import command_for, drop, open_missing_streams, say, tell, write_out

if TYPE_CHECKING:
    from studies.checking import TrialState
    from studies.generating import Generation, OnDisk

MAX_LISTED = 20


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="study.py",
        description="Make the trials of a study from its experiment.yaml, and see how they stand.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = commands.add_parser("generate", help="write configs, evaluation scripts and their map")
    made.add_argument("dir", type=Path, metavar="DIR", help="the folder of experiment.yaml")
    made.add_argument("--dry-run", action="store_true", help="show what would be written, stop")
    made.add_argument(
        "--force",
        action="store_true",
        help="overwrite also what was edited by hand, and ask nothing",
    )
    checked = commands.add_parser("check", help="say of each trial what is done, missing or stale")
    checked.add_argument("dir", type=Path, metavar="DIR", help="the folder of experiment.yaml")
    checked.add_argument("--json", action="store_true", help="print it as one JSON object")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; every failure ends as one paragraph on stderr and an exit code."""
    open_missing_streams()
    args = parse_arguments(argv)
    try:
        exit_code = generate(args) if args.command == "generate" else check(args)
        write_out()
        return exit_code
    except BrokenPipeError:  # whoever read the output has gone
        for stream in (sys.stdout, sys.stderr):
            drop(stream)
        return 1
    except (LoopError, OSError) as error:
        tell(f"error: {describe_failure(error)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        tell("Interrupted. Files that were written are whole; generate again.", file=sys.stderr)
        return 130


# --- generate -------------------------------------------------------------------------------------


def generate(args: argparse.Namespace) -> int:
    """Make the files of a study, and write them unless they are only to be shown."""
    from studies.generating import (
        ASKED_FROM,
        compare_with_disk,
        generation_of,
        refuse_edited,
        write_generation,
    )

    generation = generation_of(args.dir)
    found = compare_with_disk(generation)
    for warning in generation.warnings:
        tell(f"warning: {warning}", file=sys.stderr)
    num_trials = len(generation.trials)
    if args.dry_run:
        _show(generation, found)
        return 0
    if not args.force:
        refuse_edited(found)
    if num_trials >= ASKED_FROM and not args.force and found.new:
        _ask(num_trials)
    write_generation(generation, found)
    _tell_written(generation, found)
    return 0


def _ask(num_trials: int) -> None:
    """Ask a person before many trials. Raises `ConfigError` where nobody says yes."""
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{num_trials:,} trials would be generated, and nobody is at a terminal to be asked "
            "whether so many are meant. Leave values out, or add --force."
        )
    tell(f"{num_trials:,} trials would be generated. Go on? [y/N]", file=sys.stderr)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ConfigError(f"{num_trials:,} trials were not generated. Nothing was written.")


def _show(generation: Generation, found: OnDisk) -> None:
    """What would be written, and the first trial's config as an example."""
    tell(f"{generation.study.name}: {len(generation.trials):,} trials; nothing is written")
    for one in generation.trials[:MAX_LISTED]:
        say(f"  {one.trial.run_id}  {one.trial.shown}")
    if len(generation.trials) > MAX_LISTED:
        say(f"  and {len(generation.trials) - MAX_LISTED:,} more")
    for what, files in (
        ("new", found.new),
        ("overwritten", found.other),
        ("edited by hand, overwritten by --force alone", found.edited),
        ("same", found.same),
    ):
        if files:
            names = ", ".join(_shown(file) for file in files[:MAX_LISTED])
            more = f" and {len(files) - MAX_LISTED:,} more" if len(files) > MAX_LISTED else ""
            say(f"{what}: {names}{more}")
    _tell_left_over(found)
    first = generation.trials[0]
    say(f"{_shown(first.train_file)}:")
    say(first.train_text.rstrip())


def _tell_written(generation: Generation, found: OnDisk) -> None:
    num_written = len(found.new) + len(found.other) + len(found.edited)
    folder = _shown(generation.study.configs_dir)
    if not num_written:
        tell(f"{folder}: all {len(found.same):,} files are as the study says; nothing is written")
    else:
        tasks = ", ".join(task.entry.name for task in generation.tasks) or "none"
        tell(
            f"{folder}: {len(generation.trials):,} trials, {num_written:,} files written, "
            f"{len(found.same):,} as they were; tasks: {tasks}"
        )
    _tell_left_over(found)
    first = generation.trials[0]
    say(f"Each trial is trained and then evaluated, {first.trial.run_id} by:")
    if generation.study.experiment.experiment.framework == "tinker":
        program = Path(__file__).resolve().parent / "trainer_with_eval.py"
        train, run_dir = _quoted(first.train_file), _quoted(first.run_dir)
        say(f"  {command_for(program)} --config {train} --run-dir {run_dir}")
    else:
        say(f"  tune run lora_finetune_single_device --config {_quoted(first.train_file)}")
    if first.eval_file is not None:
        say(f"  {command_for(first.eval_file)}")


def _tell_left_over(found: OnDisk) -> None:
    for file in found.left_over:
        tell(
            f"warning: {_shown(file)}: left over from an earlier generate, and no part of the "
            "study now. Remove it.",
            file=sys.stderr,
        )


# --- check ----------------------------------------------------------------------------------------


def check(args: argparse.Namespace) -> int:
    """Say how each trial of a study stands."""
    from studies.checking import as_json, state_of
    from studies.generating import generation_of

    generation = generation_of(args.dir)
    state = state_of(generation)
    if args.json:
        say(as_json(state))
        return 0
    for warning in generation.warnings:
        tell(f"warning: {warning}", file=sys.stderr)
    for one in state.trials:
        tell(_line_of(one))
    for name in state.changed_inputs:
        tell(f"changed since the study was generated: {name}. Generate again.")
    for name in state.left_over:
        tell(f"no part of the study now: {_shown(Path(name))}")
    return 0


def _line_of(one: TrialState) -> str:
    told = {"config": one.config, "training": one.training, **one.tasks}
    states = "; ".join(f"{name} {finding.shown}" for name, finding in told.items())
    return f"{one.run_id} ({one.params}): {states}"


def _quoted(path: Path) -> str:
    return shlex.quote(_shown(path))


def _shown(path: Path) -> str:
    """A path as a person would type it from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


if __name__ == "__main__":
    sys.exit(main())
