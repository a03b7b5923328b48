"""What the worker asks of a tracker, and the trackers that there are.

What a tracker has is read back from it, event by event: that alone says what is still to be told,
also after a kill on either side, and so nothing is told twice.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from config_schema import TrainingConfig
from errors import ConfigError
from loop.tracking.rows import Row, without_secrets

REQUIREMENTS = "requirements-tracking.txt"
MLFLOW_ADDRESS = "MLFLOW_TRACKING_URI"
# Neither of them is to report on its user, and MLflow is not to try a dead server for minutes.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}


class TrackedRun(NamedTuple):
    """A run as a tracker is told of it."""

    run_id: str
    name: str
    project: str
    group: str | None  # the study that it is a trial of
    began: str  # UTC, as events have it
    resumed_at: int | None  # the event of its newest resumption
    params: Mapping[str, str]


class Tracker(Protocol):
    """One run at one tracker. Every method may raise anything."""

    def stored(self) -> set[int]:
        """The ledger's events whose rows the tracker has for good."""
        ...

    def start_over(self) -> None:
        """Begin without the rows that are there: some of them were taken back."""
        ...

    def add(self, rows: Sequence[Row]) -> None:
        """Store rows, which the tracker has for good on return."""
        ...

    def describe(self, texts: Mapping[str, str], status: str) -> None:
        """Store what is told in words, and how the run stands: as `STATUSES`."""
        ...


STATUSES = ("running", "finished", "failed", "interrupted")
Names = Callable[[str], str]  # a metric's name as the tracker takes it
OpenTracker = Callable[[str, TrackedRun, str, Names], Tracker]  # by kind and address


def open_tracker(kind: str, run: TrackedRun, address: str, names: Names) -> Tracker:
    """The run at a tracker, which is asked now for the first time."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if kind == "trackio":
        from loop.tracking.trackio_runs import TrackioRun

        return TrackioRun(run, names)
    from loop.tracking.mlflow_runs import MlflowRun

    return MlflowRun(run, address, names)


def refuse_missing(config: TrainingConfig) -> None:
    """Raise `ConfigError` where the package of a tracker that is named is not installed."""
    missing = [kind for kind in config.tracking.trackers if not _is_installed(kind)]
    if missing:
        raise ConfigError(
            f"tracking.trackers names {' and '.join(missing)}, and there is no such package here. "
            f"Install it with: .venv/bin/pip install -r {REQUIREMENTS}, or leave it out."
        )


def _is_installed(kind: str) -> bool:
    return importlib.util.find_spec(kind) is not None


def address_of(kind: str, config: TrainingConfig, run_dir: Path) -> str:
    """Where a tracker keeps runs. Of MLflow's server it may hold a password."""
    if kind == "trackio":
        return os.environ.get("TRACKIO_DIR") or "its folder in the home directory"
    given = config.tracking.mlflow_uri or os.environ.get(MLFLOW_ADDRESS)
    return given or f"sqlite:///{run_dir.resolve().parent / 'mlflow.db'}"


def describe_trackers(config: TrainingConfig, run_dir: Path) -> str:
    """A line on who is told of a run."""
    told = [
        f"{kind} ({without_secrets(address_of(kind, config, run_dir))})"
        for kind in config.tracking.trackers
    ]
    return f"tracking: {', '.join(told)}, project {config.tracking.project}"
