"""A run at a glance: what its ledger tells, read no further than it has grown since the last look.

For lists of many runs and for those that follow one. Nothing is locked, repaired or written, and of
the files of evaluations only the first lines are read. What a page of the run says is not told
here: that takes a `RunStore`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from errors import RunStoreError
from ledger.events import Event, read_events
from ledger.records import Settled
from ledger.run_directory import CONFIG, EVALUATED, LEDGER, LOCK, is_locked
from scores.intervals import Interval
from scores.measures import leading, main_of, method_words
from storage.stored_json import parse_object, record_of

State = Literal["going on", "finished", "failed", "interrupted", "stopped"]
ENDS: Mapping[str, State] = {
    "run_finished": "finished",
    "failed": "failed",
    "eval_failed": "failed",
    "interrupted": "interrupted",
}
# Of these events more is kept than that there was one; a page is another one after `PAGE_CHANGES`.
KEPT = ("evaluated", "decided", "compared", "test_evaluated", "run_finished")
PAGE_CHANGES = (*KEPT, "topics", "diagnosed", "resumed", *ENDS)
HEAD_BYTES = 4096  # of an evaluation's file: its score and interval stand before its samples


class Head(NamedTuple):
    """What an evaluation came to; the interval is None where it is unknown."""

    score: float
    interval: Interval | None
    n: int


@dataclass(frozen=True)
class _Numbers:
    score: float
    interval: Interval | None
    n: int


@dataclass(frozen=True)
class Glance:
    """How a run stands. What did not happen yet is None or empty."""

    run_dir: Path
    name: str
    base_model: str
    is_evaluation: bool
    state: State
    detail: str  # of a failure or an interruption
    begun: str | None  # UTC, as events have it
    last: str | None
    last_seq: int  # -1 without an event
    last_page_seq: int  # the last event after which the run's page is another one
    round: int | None
    step: int | None
    measure: str | None  # what `value` is of the last step: `loss`, a token, or what leads instead
    value: float | None
    scores: Mapping[int, float]
    best_round: int | None
    best: Head | None
    num_decided: int
    sentence: str | None
    num_tokens: int


class LedgerWatch:
    """Looks at one run directory, again and again."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._config: tuple[_Stamp, Settled, bool] | None = None
        self._heads: dict[str, tuple[_Stamp, Head | None]] = {}
        self._forget()

    def _forget(self) -> None:
        self._stamp: _Stamp | None = None
        self._num_bytes = 0  # of whole lines, which are read once
        self._num_events = 0
        self._first: Event | None = None
        self._last: Event | None = None
        self._last_page_seq = -1
        self._kept: list[Event] = []
        self._step: Event | None = None
        self._round: int | None = None
        self._num_tokens = 0

    @property
    def stamp(self) -> object:
        """Differs from an earlier one where the ledger has been written to since."""
        return _stamp_of(self.run_dir / LEDGER)

    def look(self) -> Glance:
        """How the run stands now. Raises `RunStoreError` for a directory that holds none."""
        settled, is_evaluation = self._settled()
        self._read_on()
        # Events of EvalOps come whenever its answer does, also after the end.
        last = self._last
        is_end = last is not None and last["type"] in ENDS
        detail = str(last["detail"] or "") if last is not None and is_end else ""
        decided = [event for event in self._kept if event["type"] == "decided"]
        evaluated = {e["round"]: e for e in self._kept if e["type"] == "evaluated"}
        best_round = decided[-1]["best_round"] if decided else None
        best_event = None if best_round is None else evaluated.get(best_round)
        config = settled.config
        measure, value = measured_of(self._step, config)
        return Glance(
            run_dir=self.run_dir,
            name=str(config.get("run_name")),
            base_model=str(config.get("base_model")),
            is_evaluation=is_evaluation,
            state=self._state(),
            detail=detail,
            begun=None if self._first is None else self._first["time"],
            last=None if last is None else last["time"],
            last_seq=self._num_events - 1,
            last_page_seq=self._last_page_seq,
            round=self._round,
            step=None if self._step is None else self._step["step"],
            measure=measure,
            value=value,
            scores={number: event["score"] for number, event in sorted(evaluated.items())},
            best_round=best_round,
            best=None if best_event is None else self._head(best_event),
            num_decided=len({event["round"] for event in decided}),
            sentence=decided[-1]["sentence"] if decided else None,
            num_tokens=self._num_tokens,
        )

    def _settled(self) -> tuple[Settled, bool]:
        path = self.run_dir / CONFIG
        stamp = _stamp_of(path)
        if stamp is None:
            raise RunStoreError(f"{path}: there is no such file, so this is no run directory.")
        if self._config is None or self._config[0] != stamp:
            try:
                data = parse_object(path.read_bytes())
                settled = record_of(Settled, data)
            except (OSError, ValueError) as error:
                raise RunStoreError(
                    f"{path}: cannot be read: {error}. Restore it, or move the directory away."
                ) from None
            self._config = stamp, settled, EVALUATED in data
        return self._config[1:]

    def _state(self) -> State:
        kind = "" if self._last is None else self._last["type"]
        if kind == "run_finished":
            return "finished"
        lock = _stamp_of(self.run_dir / LOCK)  # a pipe of that name would never open
        if lock is not None and is_locked(self.run_dir):
            return "going on"
        return ENDS.get(kind, "stopped")

    def _read_on(self) -> None:
        stamp, known = _stamp_of(self.run_dir / LEDGER), self._stamp
        if stamp is None:
            self._forget()
            return
        if stamp == known:
            return
        is_same = known is not None and (stamp.inode, stamp.device) == (known.inode, known.device)
        if known is None or not is_same or stamp.num_bytes <= known.num_bytes:
            self._forget()  # another file, or one that was written over and not appended to
        try:
            self._take_new()
        except RunStoreError:
            if self._num_events == 0:
                raise
            self._forget()  # what was read before may have been changed
            self._take_new()
        self._stamp = stamp

    def _take_new(self) -> None:
        path = self.run_dir / LEDGER
        try:
            with open(path, "rb") as file:
                file.seek(self._num_bytes)
                content = file.read()
        except FileNotFoundError:  # the directory was removed meanwhile
            return
        except OSError as error:
            raise RunStoreError(f"{path}: cannot be read: {error}.") from None
        whole, newline, _ = content.rpartition(b"\n")  # of a line that is being written nothing
        lines = whole.split(b"\n") if newline else []
        events = read_events(path, lines, self._num_events)
        for event in events:
            self._take(event)
        self._num_bytes += len(whole) + len(newline)
        self._num_events += len(events)

    def _take(self, event: Event) -> None:
        kind = event["type"]
        self._first = self._first or {"time": event["time"]}
        if kind == "evalops":
            return
        self._last = {key: event.get(key) for key in ("type", "time", "detail")}
        if event["round"] is not None:
            self._round = event["round"]
        if kind in PAGE_CHANGES:
            self._last_page_seq = event["seq"]
        if kind == "resumed":
            durable = event["durable_seq"]
            self._kept = [one for one in self._kept if one["seq"] <= durable]
            if self._step is not None and self._step["seq"] > durable:
                self._step = None  # and its round is not where the run stands any more
                rounds = (one["round"] for one in self._kept if one["round"] is not None)
                self._round = max(rounds, default=None)
        elif kind == "step":
            self._step = {key: event[key] for key in ("seq", "step", "nll")}
            self._step["measures"] = event.get("measures", {})
            self._num_tokens += event["num_tokens"]
        elif kind in KEPT:
            self._kept.append(event)
        if kind == "failed":
            self._num_tokens += event.get("num_tokens", 0)
        if not event.get("counted_before", False):
            used = ("num_prompt_tokens", "num_sampled_tokens")
            self._num_tokens += sum(event.get(name, 0) for name in used)

    def _head(self, event: Event) -> Head | None:
        """Of a file that says another score than the ledger nothing is believed."""
        file = event["file"]
        stamp = _stamp_of(self.run_dir / file)
        held = self._heads.get(file)
        if held is None or held[0] != stamp:
            if stamp is None:
                return None
            held = self._heads[file] = stamp, head_of(self.run_dir / file)
        head = held[1]
        is_same = head is not None and head.score == event["score"]
        return head if is_same else Head(event["score"], None, event.get("n") or 0)


def measured_of(step: Event | None, config: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """What stands for a step, by name and value, both None where nothing does.

    The `nll` of a model's own answers, or of a pair's, is no loss that is to fall.
    """
    if step is None or (leading([step]) is None and not method_words(config).learns_rows):
        return None, None
    name, values = main_of([step])
    return name, values[-1]


def head_of(path: Path) -> Head | None:
    """The score of an evaluation with its interval, from the first lines of its file; None where
    they do not tell."""
    with contextlib.suppress(OSError, ValueError):
        with open(path, "rb") as file:
            content = file.read(HEAD_BYTES)
        numbers, found, _ = content.partition(b',\n "protocol"')
        if found:
            one = record_of(_Numbers, parse_object(numbers + b"\n}"))
            return Head(one.score, one.interval, one.n)
    return None


class _Stamp(NamedTuple):
    device: int
    inode: int
    num_bytes: int
    modified_ns: int


def _stamp_of(path: Path) -> _Stamp | None:
    """What tells whether a file was written to; None where there is no plain file."""
    with contextlib.suppress(OSError, ValueError):
        found = os.lstat(path)
        if stat.S_ISREG(found.st_mode):
            return _Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return None


def is_run(run_dir: Path) -> bool:
    """Whether a folder looks like a run directory."""
    return _stamp_of(run_dir / CONFIG) is not None
