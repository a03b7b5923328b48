"""The commands that a plan ends with: a short pilot run, and the run itself."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from config_schema import TrainingConfig
from errors import ConfigError
from hyperparam_utils import RunSteps
from loop.planning.training_yaml import load_settings
from loop.reports.console import command_for, started_trainer

MOST_STEPS, FEWEST_STEPS = 500, 5  # of a pilot; within them a tenth of the run


class Commands(NamedTuple):
    """Lines to be typed where this one was, and what is to be said where there is none."""

    run: str
    pilot: str | None
    pilot_steps: int
    why_not: str = ""  # of a pilot that there is not


def commands_of(args: argparse.Namespace, config: TrainingConfig, steps: RunSteps) -> Commands:
    """The commands for the settings that a dry run was given, or the run that it would go on with.

    The pilot's settings are validated as its own command will do it.
    """
    if args.config is None or args.resume is not None:
        given = [] if args.resume is None else ["--resume", *filter(None, [args.resume])]
        given += [] if args.config is None else ["--config", args.config]
        run = _command([*map(str, given), *_flags(args, args.overrides or [])])
        return Commands(run, None, 0, "the run has begun, so there is nothing left to try first")
    number, changes = pilot_steps(steps.total), list(pilot_changes(config, steps.total))
    overrides = [*(args.overrides or []), *changes]
    start = ["--config", str(args.config)]
    of_run = [] if args.run_dir is None else ["--run-dir", str(args.run_dir)]
    run = _command([*start, *_flags(args, args.overrides or []), *of_run])
    try:
        load_settings(args.config, overrides)
    except ConfigError as error:
        return Commands(run, None, 0, f"these settings leave no shorter run: {error}")
    folder = str(_free_folder(Path("runs"), f"{config.run_name}-pilot"))
    pilot = _command([*start, *_flags(args, overrides), "--run-dir", folder])
    return Commands(run, pilot, number)


def pilot_steps(total: int) -> int:
    """Steps of a pilot of a run of so many."""
    return min(total, MOST_STEPS, max(FEWEST_STEPS, total // 10))


def pilot_changes(config: TrainingConfig, total_steps: int) -> Iterator[str]:
    """Yield what a pilot has otherwise than its run, as `--set` takes it: one short round, and
    neither the sealed test nor anybody's dashboard is touched by it."""
    number, evaluation = pilot_steps(total_steps), config.evaluation
    if config.num_epochs is not None:
        yield "num_epochs=null"
    yield "max_rounds=1"
    yield f"steps_per_round={number}"
    if config.warmup_steps is not None and config.warmup_steps * 3 > number:
        yield "warmup_steps=null"
    if evaluation.held_out_every_steps is not None and evaluation.held_out_every_steps >= number:
        yield "evaluation.held_out_every_steps=null"
    if evaluation.test_tasks:
        yield "evaluation.test_tasks=[]"
        if evaluation.test_on != "end":
            yield "evaluation.test_on=end"
        for key in ("task_args", "limit", "score_key", "cluster_key"):
            held = getattr(evaluation, key)
            kept = {name: one for name, one in held.items() if name not in evaluation.test_tasks}
            if kept != held:
                yield f"evaluation.{key}={json.dumps(kept)}"
    if config.evalops_enabled:
        yield "evalops_enabled=false"


def _flags(args: argparse.Namespace, overrides: list[str]) -> list[str]:
    local = ["--local"] if args.local else []
    return [*(part for one in overrides for part in ("--set", one)), *local]


def _command(arguments: list[str]) -> str:
    return f"{command_for(started_trainer())} {shlex.join(arguments)}"


def _free_folder(parent: Path, name: str) -> Path:
    """The first folder of this name, numbered from the second, that is not there yet."""
    numbered = (parent / (name if n == 1 else f"{name}-{n}") for n in range(1, 10_000))
    return next((one for one in numbered if not one.exists()), parent / name)
