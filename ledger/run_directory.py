"""A run's directory: locked, appended to line by line, replayed, and read again.

    config.resolved.json     what is used, with its sha256
    ledger.jsonl             one event per line: {"seq", "time", "round", "step", "type", ...}

The effective ledger is what a replay gives: a `resumed` event names the last durable `seq` and
supersedes what came after it, so steps that were taken again count once in the weights.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import stat
import time
import uuid
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from errors import RunStoreError
from ledger.events import Event, read_events
from ledger.records import Usage, seconds_of
from ledger.sent import Sent
from services.counted_client import Tokens
from storage.files import append_line, read_lines, storage_error, write_bytes_whole, write_whole
from storage.journal import Journal, num_waiting_tokens
from storage.stored_json import parse_object, record_of

LEDGER = "ledger.jsonl"
CONFIG = "config.resolved.json"
LOCK = ".lock"
OUTBOX = "evalops"  # judges what lies in it itself
PARTIAL = ".partial.jsonl"
RUN_ID, BEGUN_AT = "run_id", "run_dir"  # keys of the resolved config, older runs have none
LOOKS, LOOK_S = 3, 0.02  # how often a lock is tried, and how long after each time
EVALUATED = "evaluate"  # key of the resolved config: the checkpoints that are evaluated, no run

T = TypeVar("T")


TRAINED = ("step", "failed")  # events of steps, and of those that were paid for in vain


class _Meter:
    """Adds up what events say was used, by round and in all."""

    def __init__(self) -> None:
        self.total = Usage(0, 0, 0, 0.0)
        self.by_round: dict[int | None, Usage] = defaultdict(lambda: Usage(0, 0, 0, 0.0))
        self._before: Event | None = None

    def add(self, event: Event) -> None:
        if event["type"] == "evalops":  # it comes whenever the answer does
            return
        # The pause before a resumption is not running time. Events of older versions have only
        # their time of day to tell by.
        seconds = event.get("worked", 0.0)
        if "worked" not in event and self._before is not None and event["type"] != "resumed":
            seconds = seconds_of(event["time"]) - seconds_of(self._before["time"])
        self._before = event
        is_new = not event.get("counted_before", False)
        used = Usage(
            train_tokens=event.get("num_tokens", 0) if event["type"] in TRAINED else 0,
            prompt_tokens=event.get("num_prompt_tokens", 0) if is_new else 0,
            sampled_tokens=event.get("num_sampled_tokens", 0) if is_new else 0,
            minutes=max(0.0, seconds) / 60,
        )
        self.total = self.total.plus(used)
        self.by_round[event["round"]] = self.by_round[event["round"]].plus(used)


class RunDirectory:
    """A directory with its ledger. What is in it is `RunStore`'s.

    Events are found by type and round, and files are parsed once: what a run does after many
    rounds costs what it did after the first.
    """

    def __init__(
        self,
        run_dir: Path,
        events: list[Event],
        lock_file: IO[str] | None,
        is_evaluation: bool = False,
    ) -> None:
        self.run_dir = run_dir
        self.is_evaluation = is_evaluation  # of checkpoints outside a run; it has no rounds
        self.num_torn_bytes = 0  # of a last line that was not written whole, and is not read
        self._lock_file = lock_file
        if lock_file is not None:
            weakref.finalize(self, lock_file.close)  # of one that nobody closes
        self._all_events: list[Event] = []
        self.on_event: Callable[[Event], None] = lambda event: None  # told of each that is appended
        self._meter = _Meter()
        self._sent = Sent(run_dir)
        self._worked_until: float | None = None  # by this process, in seconds of its clock
        self._held: dict[tuple[str, object], Any] = {}  # by file and what it was read as
        for event in events:
            self._all_events.append(event)
            self._meter.add(event)
        self._replay()

    def _replay(self) -> None:
        self._events: list[Event] = []
        self._of_type: dict[str, list[Event]] = defaultdict(list)
        self._of_round: dict[tuple[str, int | None], list[Event]] = defaultdict(list)
        for event in effective_events(self._all_events):
            self._take(event)

    def _take(self, event: Event) -> None:
        self._events.append(event)
        self._of_type[event["type"]].append(event)
        self._of_round[event["type"], event["round"]].append(event)

    @classmethod
    def create(cls, run_dir: Path, resolved: dict[str, Any]) -> Self:
        """Start a run in a new or empty directory. Raises `RunStoreError` when it is not empty."""
        _refuse_unwritable_name(run_dir)
        try:
            if not is_absent_or_empty(run_dir):
                raise RunStoreError(
                    f"{run_dir}: not an empty directory. Choose another --run-dir, or continue the "
                    f"run in it with --resume {run_dir}."
                )
            run_dir.mkdir(parents=True, exist_ok=True)
            run_dir.chmod(0o700)  # questions, answers and rows are the user's own
        except (OSError, ValueError) as error:
            raise RunStoreError(f"{run_dir}: cannot be made: {error}. Choose another.") from None
        store = cls(run_dir, [], lock(run_dir), EVALUATED in resolved)
        of_run = {RUN_ID: uuid.uuid4().hex[:12], BEGUN_AT: str(run_dir.resolve())}
        store.write_json(CONFIG, {**resolved, **of_run})
        return store

    @classmethod
    def open(cls, run_dir: Path, *, to_resume: bool = False) -> Self:
        """Open a run to resume it, dropping a torn last line. Raises `RunStoreError` for no run."""
        is_run = is_there = False
        with contextlib.suppress(OSError):  # a name that no directory can have
            is_run, is_there = (run_dir / CONFIG).is_file(), run_dir.exists()
        if not is_run:
            why = f"it has no {CONFIG}" if is_there else "there is nothing of that name"
            raise RunStoreError(
                f"{run_dir}: not a run directory, {why}. Name the directory of a run."
            )
        refuse_links(run_dir)
        with contextlib.ExitStack() as undo:
            lock_file = undo.enter_context(lock(run_dir)) if to_resume else None
            lines = read_lines(run_dir / LEDGER, repair=to_resume)
            events = read_events(run_dir / LEDGER, lines.complete)
            store = cls(run_dir, events, lock_file)
            store.num_torn_bytes = lines.num_torn_bytes
            store.is_evaluation = EVALUATED in store.resolved_config()
            undo.pop_all()
            return store

    @property
    def run_id(self) -> str:
        return next(self.events("run_started"))["run_id"]

    @property
    def begun_at(self) -> Path | None:
        """Where the directory lay when the run began; None where that was not recorded."""
        recorded = self.resolved_config().get(BEGUN_AT)
        return Path(recorded) if isinstance(recorded, str) else None

    def now_at(self, path: Path) -> Path:
        """Where a recorded path lies now: with the run directory, where both were moved or copied
        together, or else where it was."""
        begun_at, here = self.begun_at, self.run_dir.resolve()
        if begun_at is None or begun_at == here or not path.is_absolute():
            return path
        with contextlib.suppress(OSError, ValueError):  # a name that no file can have
            moved = Path(os.path.normpath(here / os.path.relpath(path, begun_at)))
            if moved.exists():
                return moved
        return path

    def resolved_config(self) -> dict[str, Any]:
        return self._read_json(CONFIG)

    def close(self) -> None:
        """Let other processes have the run."""
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    @property
    def is_held(self) -> bool:
        """Whether this process keeps all others off the directory, and so may write in it."""
        return self._lock_file is not None

    @property
    def has_started(self) -> bool:
        return any(self.events("run_started"))

    def durable_seq(self) -> int:
        """The last event that a resumption goes on from; -1 where there is none."""
        # A step is durable once a checkpoint holds it, and so is whatever came after such a step;
        # one that failed leaves only a save that cannot be used.
        seq, has_loose_steps = -1, False
        for event in self._events:
            if event["type"] in ("step", "checkpoint", "checkpoint_unusable"):
                has_loose_steps = event["type"] != "checkpoint"
            if not has_loose_steps:
                seq = event["seq"]
        return seq

    def is_finished_with(self, config: dict[str, Any]) -> bool:
        """Whether the run came to its end, and the settings give it nothing more to do."""
        types = [event["type"] for event in self._events if event["type"] != "evalops"]
        recorded = self.resolved_config()["config"]
        is_same = all(recorded.get(key) == config[key] for key in ("max_rounds", "budget"))
        return types[-1:] == ["run_finished"] and is_same

    def append(
        self, event_type: str, *, round: int | None = None, step: int | None = None, **fields: Any
    ) -> Event:
        """Append one event and make it durable before returning. Raises `StorageError`."""
        seq = self._all_events[-1]["seq"] + 1 if self._all_events else 0
        event: Event = {
            "seq": seq,
            "time": now(),
            "round": round,
            "step": step,
            "type": event_type,
            **fields,
        }
        if event_type != "evalops":  # it comes whenever the answer does
            event["worked"] = self._seconds_worked()
        line = json.dumps(event, ensure_ascii=False, allow_nan=False)
        append_line(self.run_dir / LEDGER, line)
        self._all_events.append(event)
        self._meter.add(event)
        self._take(event)
        self.on_event(event)
        return event

    def _seconds_worked(self) -> float:
        """Seconds since the last event of this process; its clock stands still where the machine
        sleeps, and nobody can set it."""
        before, self._worked_until = self._worked_until, time.monotonic()
        return 0.0 if before is None else round(self._worked_until - before, 3)

    def write_json(self, name: str, data: object) -> None:
        """Write a JSON file, atomically as `write_text`; dataclasses become objects."""
        self._held = {key: value for key, value in self._held.items() if key[0] != name}
        encoder = json.JSONEncoder(
            indent=1, ensure_ascii=False, allow_nan=False, default=_fields_of
        )
        # Piece by piece: in one text, a hundred thousand samples would take hundreds of megabytes.
        self.write_text(name, itertools.chain(encoder.iterencode(data), ["\n"]))

    def write_text(self, name: str, text: str | Iterable[str]) -> None:
        """Write a file durably: a reader sees the old one or the new one, never half."""
        write_whole(self.run_dir / name, [text] if isinstance(text, str) else text)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file that is no text, durably as `write_text`."""
        write_bytes_whole(self.run_dir / name, content)

    def _journal(self, file: str, checkpoint: str | None) -> Journal:
        path = (self.run_dir / file).with_suffix(PARTIAL)
        return Journal(path, self.weights_of(checkpoint))

    def weights_of(self, checkpoint: str | None) -> str:
        """Which weights lie under a path. A round that is trained again, after the run went back,
        saves others under the same one."""
        if checkpoint is None:
            return "the base model"
        events = self.events("checkpoint")
        saved = [one["seq"] for one in events if one.get("sampler_path") == checkpoint]
        return f"{checkpoint}, of event {saved[-1]}" if saved else checkpoint

    def effective(self) -> list[Event]:
        """The effective events, oldest first."""
        return list(self._events)

    def events(self, event_type: str, round_no: int | None = None) -> Iterator[Event]:
        """The effective events of one type, of one round or of all, oldest first."""
        if round_no is None:
            return iter(self._of_type.get(event_type, ()))
        return iter(self._of_round.get((event_type, round_no), ()))

    def usage(self, round_no: int | None = None) -> Usage:
        """What was used, by a round or by the whole run; what was done twice counts twice.

        Of the whole run this includes samples whose evaluation is not recorded yet.
        """
        if round_no is None:
            return self._meter.total.plus(Usage(0, *self._waiting_tokens(), 0.0))
        return self._meter.by_round.get(round_no, Usage(0, 0, 0, 0.0))

    def note_sent(self, tokens: Tokens) -> None:
        """Note what is about to be sent to the service, so that it is known whatever comes of it.
        Raises `StorageError`."""
        assert self.is_held, "what writes in a run directory keeps all others off it"
        self._sent.note(tokens, self._meter.total, self.usage)

    def in_vain(self) -> Usage:
        """What was sent at the most that is not in `usage`: paid for in vain, where nothing is on
        its way. Raises `RunStoreError`."""
        return self._sent.in_vain(self.usage())

    def spent(self) -> Usage:
        """What the run has cost at the most: what was used, and what was paid for in vain."""
        return self.usage().plus(self.in_vain())

    def spent_again(self) -> Usage:
        """What events used that a resumption has superseded: it was spent, and may be once more."""
        kept = _Meter()
        for event in self._events:
            kept.add(event)
        return self._meter.total.less(kept.total)

    def _waiting_tokens(self) -> tuple[int, int]:
        # Tasks of an evaluation that still goes on, also where a resumption went back behind it:
        # what its events used has been counted, and its journal lies there until others are asked.
        told: dict[str, set[str]] = defaultdict(set)
        for event in self.ever("measured", "test_measured", "checkpoint"):
            if event["type"] == "checkpoint":
                told.pop(f"evals/round_{event['round']:02d}", None)  # it has a journal of its own
            else:
                told[event["file"].removesuffix(".json")].update(event["tasks"])
        waiting = []
        for path in self.run_dir.glob(f"*/*{PARTIAL}"):
            file = path.relative_to(self.run_dir).as_posix().removesuffix(PARTIAL)
            waiting.append(num_waiting_tokens(path, told.get(file, ())))
        return sum(prompt for prompt, _ in waiting), sum(sampled for _, sampled in waiting)

    @property
    def newest_event(self) -> Event | None:
        """The last thing that happened to the run itself."""
        newest = (event for event in reversed(self._all_events) if event["type"] != "evalops")
        return next(newest, None)

    def ever(self, *event_types: str) -> Iterator[Event]:
        """The events of these types, those too that a resumption has superseded, oldest first."""
        return (event for event in self._all_events if event["type"] in event_types)

    @property
    def num_superseded_steps(self) -> int:
        """Steps that do not count any more, as a resumption went on from before them."""
        all_steps = sum(event["type"] == "step" for event in self._all_events)
        return all_steps - sum(1 for _ in self.events("step"))

    def _last(self, event_type: str, round_no: int | None = None) -> Event | None:
        found = self._of_type.get(event_type)
        if round_no is not None:
            found = self._of_round.get((event_type, round_no))
        return found[-1] if found else None

    def _record(self, kind: type[T], event: Event) -> T:
        """What an event tells of, as a record. Raises `RunStoreError`."""
        key = f"event {event['seq']}", kind
        if key in self._held:
            return self._held[key]
        try:
            value = self._held[key] = record_of(kind, event)
            return value
        except ValueError as error:
            raise RunStoreError(
                f"{self.run_dir / LEDGER} line {event['seq'] + 1}: not a ledger event: {error}. "
                "The file was changed by something else; restore it or start a new run."
            ) from None

    def _read_json(self, name: str) -> dict[str, Any]:
        return self._read_anew(name, lambda data: data)

    def _read(self, name: str, from_json: Callable[[dict[str, Any]], T]) -> T:
        """What one of the run's own files holds, parsed once for as long as nobody writes it.

        Raises `RunStoreError` where it holds something else.
        """
        if (name, from_json) in self._held:
            return self._held[name, from_json]
        value = self._read_anew(name, from_json)
        self._hold(name, from_json, value)
        return value

    def _hold(self, name: str, from_json: Callable[[dict[str, Any]], T], value: T) -> None:
        """Keep what a file holds, so that it is not read."""
        self._held[name, from_json] = value

    def _read_anew(self, name: str, from_json: Callable[[dict[str, Any]], T]) -> T:
        try:
            return from_json(parse_object((self.run_dir / name).read_bytes()))
        except (OSError, ValueError) as error:
            raise RunStoreError(
                f"{self.run_dir / name}: cannot be read: {error}. The run cannot be resumed "
                "without it."
            ) from None


def _fields_of(record: Any) -> dict[str, Any]:
    """A dataclass as an object, made when it is written. Raises `TypeError` for anything else."""
    if not is_dataclass(record):
        raise TypeError(f"{type(record).__name__} has no JSON")
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _refuse_unwritable_name(run_dir: Path) -> None:
    """Raise `RunStoreError` for bytes that are no text: a run's files name where it began."""
    try:
        os.path.abspath(run_dir).encode()
    except UnicodeEncodeError:
        raise RunStoreError(
            f"{run_dir}: the name of this directory, or of one above it, is not UTF-8, so its "
            "files could not name it. Choose another --run-dir."
        ) from None


def new_run_dir(parent: Path, name: str) -> Path:
    """A directory name that is not taken: the time and the run's name."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    numbered = (parent / (stem if i == 1 else f"{stem}-{i}") for i in itertools.count(1))
    return next(candidate for candidate in numbered if not candidate.exists())


def is_absent_or_empty(run_dir: Path) -> bool:
    """Whether there is nothing of a run, be it that one was killed before its first file."""
    if not run_dir.exists():
        return True
    return run_dir.is_dir() and all(
        path.name == LOCK or path.suffix == ".tmp" for path in run_dir.iterdir()
    )


def effective_events(events: list[Event]) -> list[Event]:
    """Replay: each `resumed` event drops what came after the event it names."""
    effective: list[Event] = []
    for event in events:
        if event["type"] == "resumed":
            effective = [kept for kept in effective if kept["seq"] <= event["durable_seq"]]
        effective.append(event)
    return effective


def refuse_links(run_dir: Path) -> None:
    """Raise `RunStoreError` for anything but folders and files: a link could lead out of the run,
    where its target would be read or written over; a pipe would never end."""
    for folder, folders, files in os.walk(run_dir):
        for path in (Path(folder, name) for name in (*folders, *files)):
            with contextlib.suppress(FileNotFoundError):  # a run at work deletes weights
                mode = path.lstat().st_mode
                is_folder = stat.S_ISDIR(mode) and path.suffix not in (".json", ".jsonl")
                if not (is_folder or stat.S_ISREG(mode)) and path.parent != run_dir / OUTBOX:
                    raise RunStoreError(
                        f"{path}: a run directory holds files and folders of files, and this is "
                        "a link or something else. Put what it stands for in its place."
                    )


def lock(run_dir: Path, what: str = "this run") -> IO[str]:
    """Keep every other process off a run for as long as the returned file stays open."""
    try:
        file = open(run_dir / LOCK, "w")  # noqa: SIM115 (held open on purpose)
    except OSError as error:
        raise storage_error(run_dir / LOCK, error) from error
    for _ in range(LOOKS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        time.sleep(LOOK_S)  # `is_locked` of another process holds it for a moment
    file.close()
    raise RunStoreError(
        f"{run_dir}: another process is at work on {what}. Wait for it, or stop it."
    )


def is_locked(run_dir: Path) -> bool:
    """Whether a process is at work on a directory; one that is not there has none."""
    try:
        with open(run_dir / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def now() -> str:
    return stamp_in(0)


def stamp_in(seconds: float) -> str:
    """The time so many seconds from now, in UTC, as events have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
