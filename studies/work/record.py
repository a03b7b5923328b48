"""What happened to a study, in results/study.jsonl: one event a line, appended, never changed.

How a trial stands its own ledger tells; here is what is of the study as a whole: which trials and
arms it had when, which failed, what halving dropped, where its budget ended, and who won.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from errors import RunStoreError
from ledger.run_directory import lock, now
from storage.files import append_line, read_lines
from storage.stored_json import parse_object

FILE = "study.jsonl"

Event = dict[str, Any]

# What is looked up in events, by their type.
NEEDED = {
    "opened": ("time", "trials", "changes"),
    "trial_begun": ("run",),
    "trial_done": ("run",),
    "trial_failed": ("run", "error"),
    "trial_left": ("run",),
    "rung": ("round", "runs", "is_kept", "sentence"),
    "budget_reached": ("sentence",),
    "winner": ("sentence",),
    "test_opened": ("run", "time"),
}


class StudyRecord:
    """The events of a study, oldest first."""

    def __init__(self, path: Path, events: list[Event], lock_file: IO[str] | None) -> None:
        self.path = path
        self._events = events
        self._lock_file = lock_file

    @classmethod
    def read(cls, results_dir: Path) -> Self:
        """What was recorded so far. Raises `RunStoreError` for a file that is none of ours."""
        return cls(results_dir / FILE, _events_in(results_dir / FILE, repair=False), None)

    @classmethod
    def open(cls, results_dir: Path) -> Self:
        """The same to add to, with every other process kept off the study."""
        results_dir.mkdir(parents=True, exist_ok=True)
        lock_file = lock(results_dir, "this study")
        return cls(results_dir / FILE, _events_in(results_dir / FILE, repair=True), lock_file)

    def close(self) -> None:
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def events(self, *types: str) -> Iterator[Event]:
        """Those of these types, or all."""
        return (event for event in self._events if not types or event["type"] in types)

    def last(self, event_type: str) -> Event | None:
        return next((e for e in reversed(self._events) if e["type"] == event_type), None)

    def append(self, event_type: str, **fields: Any) -> None:
        """Append one event, on disk before returning. Raises `StorageError`."""
        event = {"seq": len(self._events), "time": now(), "type": event_type, **fields}
        append_line(self.path, json.dumps(event, ensure_ascii=False, allow_nan=False))
        self._events.append(event)

    def note_opened(
        self, experiment_sha256: str, trials: Mapping[str, str], arms: Sequence[str]
    ) -> list[str]:
        """Record which trials (by their ids, as they are shown) and arms the study has now, where
        that has changed. Returns a sentence on each change since the last time."""
        now_has = {**trials, **dict.fromkeys(arms, "not trained")}
        before = self.last("opened")
        if before is not None and before["trials"] == now_has:
            return []
        had = {} if before is None else before["trials"]
        said = []
        if before is not None:
            said += [f"{one} added: {now_has[one]}" for one in now_has if one not in had]
            said += [f"{one} taken out: {had[one]}" for one in had if one not in now_has]
        self.append("opened", experiment_sha256=experiment_sha256, trials=now_has, changes=said)
        return said

    @property
    def dropped(self) -> dict[str, Event]:
        """By trial, the event of the rung that dropped its arm. An arm is known by its trials,
        since it is called otherwise where variables stand in another order."""
        return {run: e for e in self.events("rung") if not e["is_kept"] for run in e["runs"]}

    @property
    def done(self) -> dict[str, Event]:
        """By trial or arm, the event that says that it is done."""
        return {event["run"]: event for event in self.events("trial_done")}

    @property
    def failures(self) -> dict[str, str]:
        """By trial, why it failed the last time, where nothing came after."""
        failed: dict[str, str] = {}
        for event in self.events("trial_failed", "trial_done", "trial_left"):
            failed.pop(event["run"], None)
            if event["type"] == "trial_failed":
                failed[event["run"]] = event["error"]
        return failed


def _events_in(path: Path, *, repair: bool) -> list[Event]:
    events: list[Event] = []
    for number, line in enumerate(read_lines(path, repair=repair).complete):
        try:
            event = parse_object(line)
            if event.get("seq") != number or not isinstance(event.get("type"), str):
                raise ValueError("its number is out of order")
            if lacking := [key for key in NEEDED.get(event["type"], ()) if key not in event]:
                raise ValueError(f"it has no {lacking[0]}")
        except ValueError as error:
            raise RunStoreError(
                f"{path} line {number + 1}: not an event of a study: {error}. The file was changed "
                "by something else; restore it, or move it away, and what the runs have recorded "
                "is used all the same."
            ) from None
        events.append(event)
    return events
