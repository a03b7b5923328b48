"""`--dry-run`: all that can be checked without a service or the network, and what could not."""

from __future__ import annotations

import argparse
import json
import os

from commands.boundary import Session
from commands.opening import OpenedSettings, begin_progress, choose_place
from errors import ConfigError, StorageError, TokenizerError
from loop.planning.limits_file import load_limits
from loop.reports.console import say, tell


def dry_run(args: argparse.Namespace, settings: OpenedSettings, session: Session) -> int:
    """Check all that can be checked without a service or the network; say what could not be."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is first imported, below
    progress = begin_progress(args, settings, session)
    from loop.planning.fitting import limits_of, unchecked_fit
    from loop.planning.inputs import read_inputs
    from loop.planning.left_out import write_lists
    from loop.planning.origin import checked_origin, refuse_other_files
    from loop.planning.page import (
        describe_inputs,
        describe_plan,
        describe_schedule,
        schedule_table,
        unchecked_without_service,
    )
    from loop.planning.plan import make_plan

    progress.lines(settings.notes)
    lines, unchecked, choice = [], [], None
    _check_what_goes_beside(settings)
    if settings.loaded.config.evalops_enabled and not session.keys.evalops:
        unchecked.append("EvalOps: EVALOPS_API_KEY is not set, and the run needs it")
    try:
        choice = choose_place(args, settings, session, settings.kept.get("service"))
        lines.append(f"service: {choice.kind} ({choice.reason})")
    except ConfigError as error:
        lines.append("service: none yet")
        unchecked.append(str(error))
    inputs = read_inputs(settings.loaded, settings.model_dir, settings.kept)
    lines += describe_inputs(inputs)
    dropped = inputs.drop_logs
    origin = checked_origin(settings.start, settings.store, inputs, choice)
    try:
        plan = make_plan(inputs, settings.kept, origin)
        inputs = plan.inputs
        lines += refuse_other_files(settings.start, plan)
        dropped += plan.dropped_in_rendering
        lines += describe_plan(plan)
    except TokenizerError as error:
        if settings.model_dir is not None:  # it has to be there; a hub's needs the network
            raise
        lines += describe_schedule(inputs, inputs.split.train, inputs.split.pool)
        unchecked.append(f"chat format, tokens and truncation: {error}")
    if settings.store is None:  # a run has its lists
        folder = settings.loaded.file.with_suffix(".plan")
        try:
            written = write_lists(folder, dropped, inputs.split.similar)
            lines.append(f"lists: {', '.join(map(str, written))}")
        except StorageError as error:
            unchecked.append(f"the lists of dropped and similar rows: {error}")
    table = list(schedule_table(inputs))
    unchecked += unchecked_without_service(choice)
    unchecked += unchecked_fit(limits_of(inputs.model_dir), (*inputs.tasks, *inputs.test_tasks))
    session.end_live_line()
    if args.json:
        plan_lines = [*lines, *table]
        say(json.dumps({"dry_run": True, "plan": plan_lines, "not_checked": unchecked}, indent=1))
    else:
        _show(lines, table, unchecked)
    return 0


def _check_what_goes_beside(settings: OpenedSettings) -> None:
    """Raise `ConfigError` for limits that cannot be read and trackers that are not installed."""
    from loop.tracking.trackers import refuse_missing

    load_limits(settings.loaded)
    refuse_missing(settings.loaded.config)


def _show(lines: list[str], table: list[str], unchecked: list[str]) -> None:
    tell("\n".join(lines))
    say("\n".join(table))
    tell("\n".join(["not checked:", *(f"  {what}" for what in unchecked)]))
