"""What the service holds up of a run: shown while it lasts, and recorded round by round.

All runs of a process that ask one service share what is known of it, so that of several trials each
has what was held up while it was at work, whosever the requests were.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from ledger.store import RunStore
from loop.reports.progress import Progress
from loop.reports.waits import before_text, now_text, told_text
from services.held_up import LASTING_S, HoldUps, Total, keep_watching
from services.keys import Keys

LOOK_S = 0.5  # between two looks at what there is to tell


class Waits:
    """What one run has told and recorded of the hold-ups of its service."""

    def __init__(self, held_up: HoldUps, store: RunStore, progress: Progress, keys: Keys) -> None:
        self._held_up, self._store, self._progress, self._keys = held_up, store, progress, keys
        self._recorded = held_up.totals()
        told = held_up.told(0)
        self._next = told[-1].number + 1 if told else 0
        progress.held_up = self.now

    def now(self) -> str:
        """What is held up right now, as the live row has it."""
        return self._keys.redacted(now_text(self._held_up.now()))

    def before(self) -> str:
        """What was held up when the service's error came."""
        return self._keys.redacted(before_text(self._held_up.now()))

    def tell(self) -> None:
        for told in self._held_up.told(self._next):
            self._next = told.number + 1
            self._progress.told_line(told.number, told_text(told))

    def record(self, round_no: int | None) -> None:
        """Record what was held up since the last time, where requests were refused or it lasted."""
        going_on = {held.what for held in self._held_up.now()}
        for what, total in self._held_up.totals().items():
            was = self._recorded.get(what, Total())
            num_refused = total.num_refused - was.num_refused
            # What was waited for counts up to now, and where it is given up only up to its last
            # word: no seconds are recorded twice for that, and none taken back.
            seconds = max(0.0, total.seconds - was.seconds)
            is_worth_it = total != was and (num_refused > 0 or seconds >= LASTING_S)
            if is_worth_it or what not in going_on:  # else it may come to more in the next round
                self._recorded[what] = total._replace(seconds=was.seconds + seconds)
            if is_worth_it:
                was_said = total.num_queued > was.num_queued
                self._store.append(
                    "held_up",
                    round=round_no,
                    what=what,
                    num_refused=num_refused,
                    num_times=total.num_times - was.num_times,
                    seconds=round(seconds, 1),
                    reason=self._keys.redacted(total.reason) if was_said else "",
                )

    def record_rest(self) -> None:
        """At the end of a run that broke off: what is not recorded yet, in its last round."""
        newest = self._store.newest_event
        if newest is not None and newest["type"] != "run_finished":
            self.record(newest["round"])

    @contextlib.asynccontextmanager
    async def telling(self) -> AsyncIterator[None]:
        """Tell of hold-ups while the block lasts, and at its end of what was not told yet."""

        async def look() -> None:
            while True:
                keep_watching()
                self.tell()
                await asyncio.sleep(LOOK_S)

        task = asyncio.create_task(look())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await task
