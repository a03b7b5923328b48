"""Trackers beside a run: the worker is started, told of runs, and left within a bound."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from config_schema import TrainingConfig
from errors import Interrupted, LoopError, one_line
from ledger.store import RunStore
from loop.tracking.replaying import Line, line_on
from loop.tracking.rows import rows_of, without_secrets
from loop.tracking.telling import standing
from loop.tracking.trackers import QUIET, describe_trackers
from loop.tracking.worker import Ordered
from services.keys import Keys

ROOT = Path(__file__).resolve().parent.parent.parent
WORKER = ("-P", "-m", "loop.tracking.worker")
LEAVE_S = 10.0  # that the worker has at the end
GRACE_S = 2.0  # for it to end
MAX_SAID_CHARS = 200
MAX_READ_BYTES = 65_536  # of what it wrote, however much that was
NO_ANSWER = "it had not answered when the run had to end"

Say = Callable[[str], None]


@dataclass
class Following:
    """The worker of this process, once a run asks for one; it takes any number of runs."""

    command: Sequence[str] = WORKER
    leave_s: float = LEAVE_S
    _worker: subprocess.Popen[bytes] | None = None
    _said: IO[bytes] | None = None  # what it wrote on its standard error
    _orders: dict[Path, Ordered] = field(default_factory=dict)

    def begin(self, store: RunStore, config: TrainingConfig) -> None:
        """Have a run told of from now on."""
        self._order(Ordered(store.run_dir, tuple(config.tracking.trackers), None))

    def end(self, store: RunStore, ending: str) -> None:
        """Have the rest of a run told of; it is over, for now at least."""
        self._order(self._orders[store.run_dir]._replace(ending=ending))

    def _order(self, order: Ordered) -> None:
        self._orders[order.run_dir] = order
        # A worker that cannot be started, has died or does not read is told of at the end and never
        # waited for.
        with contextlib.suppress(OSError):
            if self._worker is None:
                self._start()
            assert self._worker is not None and self._worker.stdin is not None, "it was started"
            os.write(self._worker.stdin.fileno(), order.line())

    def _start(self) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (read when the worker has ended)
        self._worker = subprocess.Popen(
            [sys.executable, *self.command, str(self.leave_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # trackers say how to look at them
            stderr=self._said,
            env={**QUIET, **os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the run, which tells the worker
        )
        assert self._worker.stdin is not None, "it is a pipe"
        os.set_blocking(self._worker.stdin.fileno(), False)

    def finish(self) -> list[str]:
        """Leave the worker, which gets `leave_s` seconds for the rest; what is to be said of it."""
        worker, self._worker = self._worker, None
        if worker is None:
            return self._lines("its process could not be started")
        assert worker.stdin is not None and self._said is not None, "it was started with both"
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.close()
        why = "it did not come to them"
        try:
            code = worker.wait(self.leave_s + GRACE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            code = worker.wait()
            why = NO_ANSWER
        if code == 1:
            why = NO_ANSWER
        elif code != 0 and why != NO_ANSWER:
            why = f"its process ended with {code}"
        if last := _last_line(self._said):
            why += f" ({last})"
        return self._lines(why)

    def _lines(self, why: str) -> list[str]:
        """What is said of each run at each tracker, what is missing first."""
        orders, self._orders = self._orders, {}
        lines = [line for order in orders.values() for line in _lines_on(order, why)]
        complete = [line.text for line in lines if line.is_complete]
        if len(orders) > 1 and complete:
            complete = [f"tracking: complete {len(complete)} times, of {len(lines)}"]
        return [*(f"warning: {line.text}" for line in lines if not line.is_complete), *complete]


def _last_line(said: IO[bytes]) -> str:
    """The last thing that was written, by anybody's code: without secrets, and cut."""
    with said:
        said.seek(max(0, said.seek(0, os.SEEK_END) - MAX_READ_BYTES))
        last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
    return one_line(Keys().redacted(without_secrets(last)), MAX_SAID_CHARS)


def _lines_on(order: Ordered, why: str) -> list[Line]:
    run_dir = order.run_dir
    try:
        store = RunStore.open(run_dir)
        files = store.measured_files()
        rows = rows_of(store.effective(), files, is_evaluation=store.is_evaluation)
    except LoopError as error:  # of a directory that was changed; the run has ended all the same
        return [Line(str(error), False)]
    return [line_on(kind, standing(run_dir, kind), rows, run_dir, why) for kind in order.trackers]


@contextlib.asynccontextmanager
async def tracked(
    store: RunStore, config: TrainingConfig, say: Say, shared: Following | None = None
) -> AsyncIterator[None]:
    """Have trackers told of a run while it goes on, where any are named.

    At the end they get a bounded time; of a worker that other runs share, its owner sees to that.
    """
    if not config.tracking.trackers:
        yield
        return
    following = shared or Following()
    say(describe_trackers(config, store.run_dir))
    following.begin(store, config)
    ending = "failed"
    try:
        yield
        is_finished = store.is_evaluation or any(store.events("run_finished"))
        ending = "finished" if is_finished else "interrupted"
    except (Interrupted, asyncio.CancelledError):
        ending = "interrupted"
        raise
    finally:
        following.end(store, ending)
        if shared is None:
            for line in await asyncio.to_thread(following.finish):
                say(line)
