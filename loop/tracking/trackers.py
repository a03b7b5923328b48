"""The trackers that there are: whether their packages are installed, and where they keep runs."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from config_schema import TrainingConfig
from errors import ConfigError
from loop.tracking.rows import without_secrets
from loop.tracking.tracker import Names, TrackedRun, Tracker
from storage.files import in_turn

TURN_S = 30.0
REQUIREMENTS = "requirements-tracking.txt"
MLFLOW_ADDRESS, SQLITE = "MLFLOW_TRACKING_URI", "sqlite:///"
# Neither of them is to report on its user, and MLflow is not to try a dead server for minutes.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}


def open_tracker(kind: str, run: TrackedRun, address: str, names: Names) -> Tracker:
    """The run at a tracker, which is asked now for the first time."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if kind == "trackio":
        from loop.tracking.trackio_runs import TrackioRun

        return TrackioRun(run, names)
    from loop.tracking.mlflow_runs import MlflowRun

    folder = Path(address.removeprefix(SQLITE)).parent
    if not address.startswith(SQLITE) or not folder.is_dir():
        return MlflowRun(run, address, names)
    # Who opens a new database makes its tables, and of two that make them at once both may fail.
    with in_turn(folder, TURN_S):
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
    spec = importlib.util.find_spec(kind)
    return spec is not None and spec.origin is not None  # a mere folder of that name has none


def address_of(kind: str, config: TrainingConfig, run_dir: Path) -> str:
    """Where a tracker keeps runs. Of MLflow's server it may hold a password."""
    if kind == "trackio":
        return os.environ.get("TRACKIO_DIR") or "its folder in the home directory"
    given = config.tracking.mlflow_uri or os.environ.get(MLFLOW_ADDRESS)
    return given or f"{SQLITE}{run_dir.resolve().parent / 'mlflow.db'}"


def describe_trackers(config: TrainingConfig, run_dir: Path) -> str:
    """A line on who is told of a run."""
    told = [
        f"{kind} ({without_secrets(address_of(kind, config, run_dir))})"
        for kind in config.tracking.trackers
    ]
    return f"tracking: {', '.join(told)}, project {config.tracking.project}"
