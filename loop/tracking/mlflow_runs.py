"""A run in MLflow, in a database on this machine or on a server.

Points cannot be taken back there: where a run went back, a new one begins beside the old, which is
marked. All calls name their run; MLflow's current run is not used. None of them leaves the work to
a thread of MLflow's, as MLFLOW_ENABLE_ASYNC_LOGGING would: what they return from is stored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ledger.records import seconds_of
from loop.tracking.rows import EVENT, Row
from loop.tracking.tracker import Names, TrackedRun

T = TypeVar("T")

# What MLflow takes in one request, and of one text.
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 1000, 100, 50
MAX_PARAM_CHARS, MAX_TAG_CHARS = 6000, 5000
RUN_TAG, SUPERSEDED_TAG, GROUP_TAG = "ledger.run_id", "ledger.superseded", "study"
STATUSES = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}


class MlflowRun:
    """A run that is found by a tag with an id of ours, or made."""

    def __init__(self, run: TrackedRun, address: str, names: Names) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]
        from mlflow import entities  # pyright: ignore[reportMissingImports]

        self._entities: Any = entities
        self._client: Any = mlflow.MlflowClient(tracking_uri=address)
        self._run, self._names = run, names
        self._described: dict[str, str] = {}
        found = self._client.get_experiment_by_name(run.project)
        self._experiment = (
            found.experiment_id if found else self._client.create_experiment(run.project)
        )
        self._id = self._found()

    def _found(self) -> str | None:
        """Our run there that was not superseded."""
        runs = self._client.search_runs(
            [self._experiment], filter_string=f"tags.`{RUN_TAG}` = '{self._run.run_id}'"
        )
        current = [one for one in runs if SUPERSEDED_TAG not in one.data.tags]
        return current[0].info.run_id if current else None

    def stored(self) -> set[int]:
        if self._id is None:
            return set()
        history = self._client.get_metric_history(self._id, self._names(EVENT))
        return {int(point.value) for point in history}

    def start_over(self) -> None:
        assert self._id is not None, "a run that has rows"
        name = f"{self._run.name} (superseded)"
        self._client.set_tag(self._id, "mlflow.runName", name, synchronous=True)
        self._client.set_terminated(self._id, status="KILLED")
        when = f"at event {self._run.resumed_at}"
        self._client.set_tag(self._id, SUPERSEDED_TAG, when, synchronous=True)
        self._id = None
        self._described = {}

    def _begin(self) -> str:
        run = self._run
        group = {} if run.group is None else {GROUP_TAG: run.group}
        made = self._client.create_run(
            self._experiment,
            start_time=_ms(run.began),
            tags={RUN_TAG: run.run_id, **group},
            run_name=run.name,
        )
        return made.info.run_id

    def add(self, rows: Sequence[Row]) -> None:
        run_id = self._id = self._id or self._begin()
        for batch in _batches(rows):
            points = [
                self._entities.Metric(self._names(name), value, _ms(row.time), row.step)
                for row in batch
                for name, value in row.at_tracker.items()  # the event last: it says that all is in
            ]
            for some in _chunks(points, MAX_METRICS):
                self._log(run_id, metrics=some)
            # MLflow makes the largest number there is of an infinite one.
            infinite = [
                self._tag(f"infinite.{name}.event_{row.seq}", str(value))
                for row in batch
                for name, value in row.metrics.items()
                if math.isinf(value)
            ]
            for some in _chunks(infinite, MAX_TAGS):
                self._log(run_id, tags=some)

    def describe(self, texts: Mapping[str, str], status: str, newest: Row | None) -> None:
        run_id = self._id = self._id or self._begin()
        stored = self._client.get_run(run_id)
        missing = [
            self._entities.Param(self._names(key), value[:MAX_PARAM_CHARS])
            for key, value in self._run.params.items()
            if self._names(key) not in stored.data.params
        ]
        for some in _chunks(missing, MAX_PARAMS):
            self._log(run_id, params=some)
        changed = {}  # a param cannot be another value, and may have been one for a while
        for key, value in self._run.params.items():
            first = stored.data.params.get(self._names(key), value[:MAX_PARAM_CHARS])
            tag = f"changed.{key}"
            if first != value[:MAX_PARAM_CHARS] or self._names(tag) in stored.data.tags:
                changed[tag] = value
        told = {**changed, **texts}
        tags = [self._tag(k, v) for k, v in told.items() if self._described.get(k) != v]
        for some in _chunks(tags, MAX_TAGS):
            self._log(run_id, tags=some)
        self._described = told
        if status == "running":
            self._client.update_run(run_id, status="RUNNING")
        elif stored.info.status != STATUSES[status]:
            self._client.set_terminated(run_id, status=STATUSES[status])

    def _log(self, run_id: str, **what: list[Any]) -> None:
        self._client.log_batch(run_id, synchronous=True, **what)

    def _tag(self, name: str, text: str) -> Any:
        return self._entities.RunTag(self._names(name), text[:MAX_TAG_CHARS])


def _batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows that go together; one in two requests only where it is too large for one."""
    batch: list[Row] = []
    num = 0
    for row in rows:
        if batch and num + len(row.at_tracker) > MAX_METRICS:
            yield batch
            batch, num = [], 0
        batch.append(row)
        num += len(row.at_tracker)
    if batch:
        yield batch


def _chunks(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in itertools.count(0, size):
        if start >= len(items):
            return
        yield list(items[start : start + size])


def _ms(stamp: str) -> int:
    return round(seconds_of(stamp) * 1000)
