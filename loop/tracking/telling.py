"""One run told to one tracker: what is missing there is read back, and brought up to the ledger.

What a tracker raises is its own affair: it becomes a sentence, and is tried again. Beside what the
tracker has, only the names that it was given and how it stands are kept, in the run directory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from config_schema import TrainingConfig, validate
from errors import RunStoreError, StorageError, one_line
from ledger.run_directory import CONFIG, lock
from ledger.store import RunStore
from loop.tracking.names import with_names
from loop.tracking.rows import Row, params_of, rows_of, texts_of, without_secrets
from loop.tracking.tracker import OpenTracker, TrackedRun, Tracker
from loop.tracking.trackers import address_of
from storage.stored_json import parse_object

FOLDER = "tracking"
STUDY_FILE = "experiment.yaml"
MAX_PROBLEM_CHARS = 500

Redacted = Callable[[str], str]


class Standing(NamedTuple):
    """How a run stands at a tracker, as far as is known here."""

    num_rows: int = 0  # that it has
    last_row: int | None = None  # the event of the last of them
    problem: str | None = None

    def known_of(self, rows: Sequence[Row]) -> int:
        """How many of these rows are known to be there; none where the run went back since."""
        return self.num_rows if self.last_row in {row.seq for row in rows} else 0


class Told(NamedTuple):
    """What is to be told of a run now."""

    rows: list[Row]  # all that its ledger has
    last_seq: int  # the last of them that is told
    texts: dict[str, str]
    status: str

    @property
    def due(self) -> list[Row]:
        return [row for row in self.rows if row.seq <= self.last_seq]


def told_of(store: RunStore, *, is_over: bool, status: str) -> Told:
    """What is told of a run as its ledger stands. While it goes on, that is what a resumption
    cannot take back; steps that no saved state holds wait for one."""
    events = store.effective()
    rows = rows_of(events, store.measured_files(), is_evaluation=store.is_evaluation)
    last = events[-1]["seq"] if events else -1
    known = [event for event in events if is_over or event["seq"] <= store.durable_seq()]
    return Told(rows, last if is_over else store.durable_seq(), texts_of(known), status)


def tracked_run(store: RunStore, config: TrainingConfig, redacted: Redacted) -> TrackedRun:
    """A run that has begun, as a tracker is told of it."""
    settled = store.settled_config()
    resolved = {f"resolved.{key}": value for key, value in settled["resolved"].items()}
    name = config.tracking.run_name or config.run_name
    run_id = _id_of(store)
    resumptions = [event["seq"] for event in store.events("resumed")]
    return TrackedRun(
        run_id=run_id,
        name=f"{name}-{run_id}",
        project=config.tracking.project,
        group=_study_of(store.run_dir),
        began=next(store.events("run_started"))["time"],
        resumed_at=resumptions[-1] if resumptions else None,
        params=params_of({**settled["config"], **resolved}, redacted),
    )


def _id_of(store: RunStore) -> str:
    """The run's id; a copy of a run that lies where it was begun is told of as another one."""
    begun_at, here = store.begun_at, store.run_dir.resolve()
    if begun_at is None or begun_at == here or not (begun_at / CONFIG).is_file():
        return store.run_id
    digest = hashlib.sha256(os.fsencode(here)).hexdigest()
    return f"{store.run_id}-copy-{digest[:8]}"


def _study_of(run_dir: Path) -> str | None:
    """The name of the study that a run is a trial of: its folder, two above the run's."""
    folders = list(run_dir.resolve().parents)[:2]
    return next((one.name for one in folders if (one / STUDY_FILE).is_file()), None)


def settings_of(store: RunStore) -> TrainingConfig:
    """The settings that a run goes on by."""
    return validate(store.settled_config()["config"], str(store.run_dir))


def state_file(kind: str) -> str:
    return f"{FOLDER}/{kind}/state.json"


def standing(run_dir: Path, kind: str) -> Standing:
    """How a run stood at a tracker when it was last told of; nothing is there before that."""
    state = _state(run_dir, kind)
    num_rows, last_row, problem = (state.get(k) for k in ("num_rows", "last_row", "problem"))
    return Standing(
        num_rows if isinstance(num_rows, int) else 0,
        last_row if isinstance(last_row, int) else None,
        problem if isinstance(problem, str) else None,
    )


def _state(run_dir: Path, kind: str) -> dict[str, Any]:
    """What is kept of a tracker. It can be made again of the ledger, so a damaged one is none."""
    try:
        return parse_object((run_dir / state_file(kind)).read_bytes())
    except (OSError, ValueError):
        return {}


class Telling:
    """Tells one tracker of one run, again and again, by one process at a time."""

    def __init__(
        self, run_dir: Path, kind: str, opens: OpenTracker, redacted: Redacted = str
    ) -> None:
        self.run_dir, self.kind = run_dir, kind
        self._opens, self._redacted = opens, redacted
        self._tracker: Tracker | None = None
        self._stored: set[int] = set()  # by the tracker, of what it was asked and told
        self._lock: IO[str] | None = None
        names = _state(run_dir, kind).get("names")
        known = names if isinstance(names, dict) else {}
        self._names = {k: v for k, v in known.items() if isinstance(v, str)}

    def tell(self, store: RunStore, config: TrainingConfig, told: Told) -> Standing:
        """Bring the tracker up to the ledger. Whatever it raises is the problem that is returned,
        and kept; the next call begins by asking it again."""
        problem = None
        try:
            self._bring_up(store, config, told)
        except Exception as error:  # a tracker is anybody's code, and a server's answers
            self._tracker = None
            text = one_line(f"{type(error).__name__}: {error}")
            problem = self._cleaned(text)[:MAX_PROBLEM_CHARS]
        if self._lock is None:  # another process is at it, or the directory cannot be written
            return standing(self.run_dir, self.kind)._replace(problem=problem)
        now = self._standing(told, problem)
        try:
            self._keep(store, config, now)
        except StorageError as error:
            return now._replace(problem=problem or str(error))
        return now

    def _standing(self, told: Told, problem: str | None = None) -> Standing:
        there = self._stored.intersection(row.seq for row in told.rows)
        return Standing(len(there), max(there, default=None), problem)

    def _bring_up(self, store: RunStore, config: TrainingConfig, told: Told) -> None:
        self._take_lock()
        before = dict(self._names)
        run = tracked_run(store, config, self._redacted)
        names = dict.fromkeys(name for row in told.due for name in row.at_tracker)
        self._names = with_names(self._names, [*names, *run.params], self._cleaned)
        if self._names != before:
            self._keep(store, config, self._standing(told))
        if self._tracker is None:
            address = address_of(self.kind, config, self.run_dir)
            self._tracker = self._opens(self.kind, run, address, self._name)
            self._stored = self._tracker.stored()
        if self._stored - {row.seq for row in told.rows}:
            self._tracker.start_over()
            self._stored = set()
        missing = [row for row in told.due if row.seq not in self._stored]
        if missing:
            self._tracker.add(missing)
            self._stored |= {row.seq for row in missing}
        texts = {name: self._cleaned(text) for name, text in told.texts.items()}
        self._tracker.describe(texts, told.status, told.due[-1] if told.due else None)

    def _cleaned(self, text: str) -> str:
        return self._redacted(without_secrets(text))

    def _name(self, name: str) -> str:
        if name not in self._names:  # of a text, whose name nobody reads numbers by
            self._names = with_names(self._names, [name], self._cleaned)
        return self._names[name]

    def _take_lock(self) -> None:
        folder = self.run_dir / FOLDER / self.kind
        if self._lock is None:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock(folder, f"telling {self.kind} of the run")

    def _keep(self, store: RunStore, config: TrainingConfig, now: Standing) -> None:
        """Write down how it stands."""
        state = {
            "tracker": self.kind,
            "address": without_secrets(address_of(self.kind, config, self.run_dir)),
            "project": config.tracking.project,
            "num_rows": now.num_rows,
            "last_row": now.last_row,
            "problem": now.problem,
            "names": self._names,
        }
        store.write_text(state_file(self.kind), json.dumps(state, indent=1) + "\n")

    def close(self) -> None:
        """Let other processes tell the tracker."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def opened(run_dir: Path) -> RunStore:
    """A run's directory to read. Raises `RunStoreError` for one that cannot be told of."""
    store = RunStore.open(run_dir)
    if not store.has_started:
        raise RunStoreError(f"{run_dir}: the run has not begun, so there is nothing to tell of it.")
    return store
