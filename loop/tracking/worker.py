"""The process that tells trackers of runs, beside the one that trains.

    python -P -m loop.tracking.worker SECONDS

It is told on its standard input, a line of JSON each, which run directories to follow and which of
them are over, and reads their ledgers itself. Nothing waits for it, and nothing that a tracker's
code does (hang, crash, keep Python's lock, wait at exit) happens where the training is. When its
input ends, as also where the training was killed, it has so many seconds for what is left.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from errors import LoopError, one_line
from ledger.run_directory import LEDGER
from loop.tracking.telling import Telling, opened, settings_of, told_of
from loop.tracking.tracker import OpenTracker
from loop.tracking.trackers import open_tracker
from services.keys import Keys

LOOK_EVERY_S = 0.5
MAX_SHARE = 0.1  # of a processor, for reading ledgers again
FIRST_RETRY_S, LAST_RETRY_S = 5.0, 300.0


class Ordered(NamedTuple):
    """A line of the input."""

    run_dir: Path
    trackers: tuple[str, ...]
    ending: str | None  # None while the run goes on

    @staticmethod
    def of(line: str | bytes) -> Ordered:
        data = json.loads(line)
        return Ordered(Path(data["run_dir"]), tuple(data["trackers"]), data["ending"])

    def line(self) -> bytes:
        data = {**self._asdict(), "run_dir": str(self.run_dir)}
        return json.dumps(data).encode() + b"\n"


@dataclass
class _Followed:
    """A run and a tracker, and what the tracker was last told of."""

    telling: Telling
    seen: tuple[int, str | None] | None = None
    retry_at: float = 0.0
    retry_s: float = FIRST_RETRY_S


@dataclass
class Desk:
    """What is followed, and whether more is to come."""

    opens: OpenTracker
    leave_s: float
    orders: dict[Path, Ordered] = field(default_factory=dict)
    changed: threading.Event = field(default_factory=threading.Event)
    is_closing: bool = False

    def follow(self, lines: Iterable[bytes]) -> bool:
        """Do what the lines say until they end, and what is left then; whether it could be done.

        Each tracker has a thread of its own, so that one that hangs keeps none of the others."""
        threads: dict[str, threading.Thread] = {}
        for line in lines:
            order = Ordered.of(line)
            self.orders[order.run_dir] = order
            for kind in order.trackers:
                if kind not in threads:
                    threads[kind] = threading.Thread(target=self._serve, args=[kind], daemon=True)
                    threads[kind].start()
            self.changed.set()
        self.is_closing = True
        self.changed.set()
        leave_at = time.monotonic() + self.leave_s
        for thread in threads.values():
            thread.join(max(0.0, leave_at - time.monotonic()))
        return not any(thread.is_alive() for thread in threads.values())

    def _serve(self, kind: str) -> None:
        """Tell one tracker of all runs, until there is nothing more to come."""
        followed: dict[Path, _Followed] = {}
        while True:
            is_last, began = self.is_closing, time.monotonic()
            self.changed.clear()
            for order in list(self.orders.values()):
                if kind in order.trackers:
                    if order.run_dir not in followed:
                        telling = Telling(order.run_dir, kind, self.opens, Keys().redacted)
                        followed[order.run_dir] = _Followed(telling)
                    _tell(followed[order.run_dir], order, is_last=is_last)
            if is_last:
                return
            pause_s = max(LOOK_EVERY_S, (time.monotonic() - began) / MAX_SHARE)
            if not self.is_closing:
                self.changed.wait(pause_s)


def _tell(one: _Followed, order: Ordered, *, is_last: bool) -> None:
    """Tell of a run where its ledger has grown, or where the tracker failed before."""
    ending = order.ending or ("interrupted" if is_last else None)
    now = time.monotonic()
    try:
        size = (order.run_dir / LEDGER).stat().st_size
        is_known = (size, ending) == one.seen and not one.retry_at
        if is_known or (one.retry_at > now and not is_last):
            return
        store = opened(order.run_dir)
        told = told_of(store, is_over=order.ending is not None, status=ending or "running")
        standing = one.telling.tell(store, settings_of(store), told)
    except (OSError, LoopError) as error:  # of the run directory; it is read again
        sys.stderr.write(f"{one_line(str(error))}\n")
        return
    one.seen = size, ending
    if standing.problem is None:
        one.retry_at, one.retry_s = 0.0, FIRST_RETRY_S
    else:
        one.retry_at, one.retry_s = now + one.retry_s, min(2 * one.retry_s, LAST_RETRY_S)
    if ending is not None and standing.problem is None:
        one.telling.close()


def main(opens: OpenTracker = open_tracker) -> None:
    """Follow what standard input names; leave without what trackers have registered for exits."""
    is_done = Desk(opens, float(sys.argv[-1])).follow(iter(sys.stdin.buffer.readline, b""))
    os._exit(0 if is_done else 1)


if __name__ == "__main__":
    main()
