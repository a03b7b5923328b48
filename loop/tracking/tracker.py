"""What the worker asks of a tracker.

What a tracker has is read back from it, event by event: that alone says what is still to be told,
also after a kill on either side, and so nothing is told twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from loop.tracking.rows import Row


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

    def describe(self, texts: Mapping[str, str], status: str, newest: Row | None) -> None:
        """Store what is told in words, and how the run stands: as `STATUSES`. `newest` is the
        newest of the rows that the tracker has."""
        ...


STATUSES = ("running", "finished", "failed", "interrupted")
Names = Callable[[str], str]  # a metric's name as the tracker takes it
OpenTracker = Callable[[str, TrackedRun, str, Names], Tracker]  # by kind and address
