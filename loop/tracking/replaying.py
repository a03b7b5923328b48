"""A ledger told to its trackers from the beginning, as far as they do not have it yet."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from config_schema import TrainingConfig
from errors import ConfigError, RunStoreError, TrackerError
from ledger.run_directory import is_locked
from ledger.store import RunStore
from loop.reports.console import command_for
from loop.tracking.rows import Row
from loop.tracking.telling import Standing, Telling, told_of
from loop.tracking.trackers import describe_trackers, open_tracker, refuse_missing
from services.keys import Keys

PROGRAM = Path(__file__).resolve().parent.parent.parent / "report.py"
ENDINGS = {"run_finished": "finished", "failed": "failed", "eval_failed": "failed"}


def replay(store: RunStore, config: TrainingConfig, keys: Keys) -> list[str]:
    """Bring the trackers of `tracking` up to what the ledger says; returns what is to be said.

    Raises `ConfigError` where none is named or a package is missing, `RunStoreError` where a
    process is at work on the run, and `TrackerError` where a tracker was not told of all of it.
    """
    if not config.tracking.trackers:
        raise ConfigError(
            f"{store.run_dir}: tracking.trackers names no tracker to tell of the run. Name trackio "
            "or mlflow, for example with --set 'tracking.trackers=[\"trackio\"]'."
        )
    refuse_missing(config)
    if not store.has_started:
        raise RunStoreError(
            f"{store.run_dir}: the run has not begun, so there is nothing to tell of it. Resume it."
        )
    if is_locked(store.run_dir):
        raise RunStoreError(
            f"{store.run_dir}: a process is at work on this run, and tells its trackers itself. "
            "Wait for its end."
        )
    told = told_of(store, is_over=True, status=ending_of(store))
    lines, problems = [describe_trackers(config, store.run_dir)], []
    for kind in config.tracking.trackers:
        telling = Telling(store.run_dir, kind, open_tracker, keys.redacted)
        try:
            standing = telling.tell(store, config, told)
        finally:
            telling.close()
        line = line_on(kind, standing, told.rows, store.run_dir)
        (lines if line.is_complete else problems).append(line.text)
    if problems:
        complete = [f"{line}." for line in lines[1:]]
        raise TrackerError(" ".join([*complete, *problems]))
    return lines


def ending_of(store: RunStore) -> str:
    """How a run that nobody is at work on has ended; one that was killed was interrupted."""
    event = store.newest_event
    assert event is not None, "the run has begun"
    return ENDINGS.get(event["type"], "interrupted")


class Line(NamedTuple):
    """What is said of a tracker, and whether it has all rows."""

    text: str
    is_complete: bool


def line_on(
    kind: str, standing: Standing, rows: Sequence[Row], run_dir: Path, why: str = ""
) -> Line:
    """How a run stands at a tracker that is to have these rows; `why` is what is known beside."""
    num_known = standing.known_of(rows)
    if num_known == len(rows) and standing.problem is None:
        return Line(f"{kind}: it has all {len(rows)} rows of the run", True)
    problem = standing.problem or why or "it did not take them"
    command = f"{command_for(PROGRAM)} --track {shlex.quote(str(run_dir))}"
    return Line(
        f"{kind}: {num_known} of the run's {len(rows)} rows are known to be there: "
        f"{problem.rstrip('.')}. The run does not depend on it. Complete it with: {command}",
        False,
    )
