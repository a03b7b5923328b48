"""Trackers of the tests' own, behind the small interface: one keeps rows in a file, others fail.

    python -P tests/tracker_worker.py HOW FILE SECONDS

As a program it is the worker with such a tracker; HOW is how it behaves.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from loop.tracking.rows import Row
from loop.tracking.tracker import Names, OpenTracker, TrackedRun
from loop.tracking.worker import main


class Kept:
    """Rows in a file, a line each, whole on return."""

    def __init__(self, file: Path, run: TrackedRun, names: Names) -> None:
        self.file, self.run, self.names = file, run, names

    def lines(self) -> list[dict]:
        if not self.file.exists():
            return []
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def stored(self) -> set[int]:
        return {line["seq"] for line in self.lines() if line["run"] == self.run.run_id}

    def start_over(self) -> None:
        others = [line for line in self.lines() if line["run"] != self.run.run_id]
        self.file.write_text("".join(json.dumps(line) + "\n" for line in others))

    def add(self, rows: Sequence[Row]) -> None:
        with open(self.file, "a") as file:
            for row in rows:
                metrics = {self.names(name): value for name, value in row.metrics.items()}
                line = {"run": self.run.run_id, "seq": row.seq, "step": row.step, **metrics}
                file.write(json.dumps(line) + "\n")

    def describe(self, texts: Mapping[str, str], status: str, newest: Row | None) -> None:
        self.file.with_suffix(".said").write_text(json.dumps({**texts, "status": status}))


def hang() -> None:
    threading.Event().wait()


def fail() -> None:
    raise ConnectionError("http://me:my-password@tracker:5000/?token=abc refuses\x1b[31m")


def die() -> None:
    sys.stderr.write("lost http://me:my-password@tracker:5000\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


MISBEHAVIOUR: dict[str, Callable[[], None]] = {"hangs": hang, "raises": fail, "dies": die}


class Failing(Kept):
    """Does something else than to add rows."""

    how: Callable[[], None] = staticmethod(fail)

    def add(self, rows: Sequence[Row]) -> None:
        self.how()


class KeepsTwo(Kept):
    """Keeps two rows of each call and then fails, as one that is killed amid them."""

    def add(self, rows: Sequence[Row]) -> None:
        super().add(rows[:2])
        raise ConnectionError("the server has gone")


def opener(how: str, file: Path) -> OpenTracker:
    def opens(kind: str, run: TrackedRun, address: str, names: Names) -> Kept:
        if how in MISBEHAVIOUR:
            failing = Failing(file, run, names)
            failing.how = MISBEHAVIOUR[how]
            return failing
        return {"keeps": Kept, "keeps two": KeepsTwo}[how](file, run, names)

    return opens


if __name__ == "__main__":
    main(opener(sys.argv[1], Path(sys.argv[2])))
