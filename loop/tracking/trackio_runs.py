"""A run in Trackio's own database on this machine.

Rows go through Trackio's storage, and not through its run object: that one asks the hub who its
user is, keeps rows half a second in memory, and has no id for a row. Here a row is on disk on
return, and one that is there already is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loop.tracking.rows import EVENT, Row
from loop.tracking.tracker import Names, TrackedRun


class TrackioRun:
    """A run by an id of ours. Rows that were taken back are deleted with the others, and all are
    told again."""

    def __init__(self, run: TrackedRun, names: Names) -> None:
        from trackio.sqlite_storage import (  # pyright: ignore[reportMissingImports]
            SQLiteStorage,
        )

        self._storage = SQLiteStorage
        self._run, self._names = run, names

    def stored(self) -> set[int]:
        rows = self._storage.get_logs(self._run.project, run_id=self._run.run_id)
        return {int(row[EVENT]) for row in rows}

    def start_over(self) -> None:
        run = self._run
        if not self._storage.delete_run(run.project, run.name, run_id=run.run_id):
            raise RuntimeError(f"Trackio did not delete the run {run.name}")

    def add(self, rows: Sequence[Row]) -> None:
        self._store(rows, None)

    def describe(self, texts: Mapping[str, str], status: str, newest: Row | None) -> None:
        run = self._run
        # Trackio stores a run's config with a row; one that is there already is left as it is.
        if newest is not None:
            own = {"_Group": run.group, "_Created": _iso(run.began), "_Username": None}
            self._store([newest], {**own, **run.params, **texts, "status": status})

    def _store(self, rows: Sequence[Row], config: Mapping[str, str | None] | None) -> None:
        run = self._run
        self._storage.bulk_log(
            run.project,
            run.name,
            [{self._names(k): v for k, v in row.at_tracker.items()} for row in rows],
            steps=[row.step for row in rows],
            timestamps=[_iso(row.time) for row in rows],
            log_ids=[f"{run.run_id}-{row.seq}" for row in rows],
            run_id=run.run_id,
            config=None if config is None else dict(config),
        )


def _iso(stamp: str) -> str:
    """A time of the ledger's as Trackio writes its own."""
    return stamp.replace("Z", "+00:00")
