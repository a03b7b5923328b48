"""The one compute thread: training jobs and waves of samples, in turns that are fair to all.

Nothing else touches torch. A run's jobs run in the order of their submission, the runs take turns,
and so do training as a whole and sampling as a whole: after a job, sampling gets as long as the
job took, token by token, so that neither long answers nor a long queue of steps hold up the other.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from local_tinker.background import Background
from local_tinker.checkpoints import StorageError
from local_tinker.engine import Engine
from local_tinker.sample_requests import SampleRequest, WaveKey
from local_tinker.sample_rows import Row
from local_tinker.sampling import Wave
from local_tinker.wire import NotFound, UserError, sample_response

logger = logging.getLogger(__name__)

GATHER_S = 0.015  # a wave that is not full waits this long for company after the last arrival
MAX_GATHER_S = 0.3
MIN_SLICE_S = 0.02  # how long waves are advanced between two jobs, at least
QUEUE_BEHIND_S = 1.0  # how long samples wait for a wave of their own kind to end
MAX_WAVES = 4  # each holds a cache of its own

Result = bytes | dict  # protobuf or JSON, as the protocol says for each kind of request
Job = Callable[[], Result]


class Closed(Exception):
    """The service is shutting down, and this request was not run, or not to its end."""

    def __init__(self) -> None:
        super().__init__("the service is shutting down; this request was not finished")


def _settle(future: Future[Result], work: Callable[[], Result]) -> None:
    """Answer a future with what `work` returns or raises.

    The boundary of the service: whatever one request breaks is that request's answer, and the
    thread that serves all the others goes on.
    """
    try:
        result = work()
    except Exception as error:
        _fail(future, error)
    else:
        if not future.done():
            future.set_result(result)


def _fail(future: Future[Result], error: Exception) -> None:
    """Answer with an error. Its frames are dropped, or they would hold tensors for half an hour."""
    if not isinstance(error, UserError | NotFound | StorageError | Closed):
        logger.error("a request failed", exc_info=error)
    if not future.done():
        future.set_exception(error.with_traceback(None))


@dataclass
class _PendingJob:
    engine: Engine
    job: Job
    future: Future[Result]


@dataclass
class _PendingSample:
    engine: Engine
    rows: list[Row]
    future: Future[Result]
    arrived_at: float
    num_started: int = 0  # rows that are in a wave or done

    @property
    def key(self) -> tuple[int, WaveKey]:
        return id(self.engine), self.rows[0].request.wave_key

    @property
    def num_slots(self) -> int:
        return self.rows[0].request.wave_key.num_slots(self.engine)

    def finish_if_done(self) -> None:
        if not self.future.done() and all(row.is_done for row in self.rows):
            _settle(self.future, self._response)

    def _response(self) -> Result:
        return sample_response([row.result() for row in self.rows], self.rows[0].scores)


@dataclass
class _LiveWave:
    wave: Wave
    members: list[_PendingSample]

    @property
    def key(self) -> tuple[int, WaveKey]:
        return id(self.wave.engine), self.wave.key


class Worker:
    """Runs jobs and waves until `close`."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, deque[_PendingJob]] = OrderedDict()  # queue name -> jobs
        self._samples: list[_PendingSample] = []  # with rows that are in no wave yet
        self._waves: deque[_LiveWave] = deque()
        self._last_sample_at = 0.0
        self._last_job_s = 0.0
        self._close_at: float | None = None
        self._changed = threading.Condition()
        self._thread = Background("local-tinker-compute", self._run)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_queued(self) -> tuple[int, int]:
        """Jobs and sample requests that are not finished."""
        members = {id(p) for live in list(self._waves) for p in live.members}
        members |= {id(p) for p in list(self._samples)}
        return sum(len(queue) for queue in list(self._jobs.values())), len(members)

    def submit(self, queue: str, engine: Engine, job: Job) -> Future[Result]:
        """Queue a job; the jobs of one queue run one at a time in the order of submission."""
        future: Future[Result] = Future()
        with self._changed:
            if self._close_at is not None:
                raise Closed
            self._jobs.setdefault(queue, deque()).append(_PendingJob(engine, job, future))
            self._changed.notify()
        return future

    def sample(self, engine: Engine, request: SampleRequest) -> Future[Result]:
        """Queue a sample request; its rows join the waves that are formed next."""
        rows = [Row(request, index) for index in range(request.num_samples)]
        pending = _PendingSample(engine, rows, Future(), time.monotonic())
        with self._changed:
            if self._close_at is not None:
                raise Closed
            self._samples.append(pending)
            self._last_sample_at = pending.arrived_at
            self._changed.notify()
        return pending.future

    def refuse(self, queue: str, error: Exception) -> None:
        """Answer the jobs of a queue that have not begun with an error."""
        with self._changed:
            refused = self._jobs.pop(queue, deque())
        for pending in refused:
            _fail(pending.future, error)

    def close(self, drain_s: float = 0.0, limit_s: float | None = None) -> bool:
        """Work on for at most `drain_s`, refuse what is left with `Closed`, end the thread.

        The job in hand is not broken off; False when it goes on after `limit_s`, which it does
        behind the caller's back then.
        """
        with self._changed:
            self._close_at = time.monotonic() + drain_s
            self._changed.notify()
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    @property
    def _must_end(self) -> bool:
        """Whether the time to finish what is queued has run out."""
        return self._close_at is not None and time.monotonic() >= self._close_at

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._jobs or self._samples or self._waves or self._close_at):
                    self._changed.wait()
                is_idle = not (self._jobs or self._samples or self._waves)
                if self._must_end or (is_idle and self._close_at is not None):
                    break
                job = self._next_job()
            if job is not None:
                self._run_job(job)
            if self._samples:
                self._start_waves()
            if self._waves:
                self._advance_waves()
        jobs = [pending for queue in self._jobs.values() for pending in queue]
        in_waves = [pending for live in self._waves for pending in live.members]
        for pending in (*jobs, *self._samples, *in_waves):
            _fail(pending.future, Closed())

    def _next_job(self) -> _PendingJob | None:
        """The next job of the queue whose turn it is; the queue then goes to the end."""
        if not self._jobs:
            return None
        name, queue = self._jobs.popitem(last=False)
        job = queue.popleft()
        if queue:
            self._jobs[name] = queue
        return job

    def _run_job(self, pending: _PendingJob) -> None:
        torch.set_num_threads(pending.engine.num_threads)
        started = time.monotonic()
        _settle(pending.future, pending.job)
        self._last_job_s = time.monotonic() - started

    def _start_waves(self) -> None:
        """Form waves of the samples that wait, oldest first, while there is room for waves.

        Samples of a kind that has a wave already wait for its end, so that they share the next
        one; but not for longer than `QUEUE_BEHIND_S`, so that one long answer does not block them.
        """
        if not self._waves:
            self._gather()
        with self._changed:
            waiting = list(self._samples)
        tried = {live.key for live in self._waves}
        for first in waiting:
            has_waited = time.monotonic() - first.arrived_at > QUEUE_BEHIND_S
            if len(self._waves) >= MAX_WAVES or first.num_started == len(first.rows):
                continue
            if first.key not in tried or has_waited:
                tried.add(first.key)
                self._start_wave([p for p in waiting if p.key == first.key])
        with self._changed:
            self._samples = [
                p for p in self._samples if p.num_started < len(p.rows) and not p.future.done()
            ]

    def _start_wave(self, kin: list[_PendingSample]) -> None:
        engine = kin[0].engine
        num_slots = kin[0].num_slots
        rows: list[Row] = []
        members: list[_PendingSample] = []
        for pending in kin:
            room = num_slots - len(rows)
            fresh = pending.rows[pending.num_started : pending.num_started + room]
            if fresh and not pending.future.done():
                pending.num_started += len(fresh)
                rows += fresh
                members.append(pending)
        if not rows:
            return
        try:
            self._waves.append(_LiveWave(Wave(engine, rows), members))
        except Exception as error:  # the weights cannot be loaded: that is their samples' answer
            for pending in members:
                _fail(pending.future, error)

    def _advance_waves(self) -> None:
        """Advance waves by turns for about as long as the last job took."""
        give_up_at = time.monotonic() + max(MIN_SLICE_S, self._last_job_s)
        self._last_job_s = 0.0
        while self._waves and not self._must_end:
            live = self._waves.popleft()
            torch.set_num_threads(live.wave.engine.num_threads)
            turn_ends_at = time.monotonic() + MIN_SLICE_S
            try:
                with contextlib.ExitStack() as at_its_end:
                    at_its_end.callback(live.wave.close)
                    while not live.wave.is_done and time.monotonic() < turn_ends_at:
                        live.wave.advance()
                        for pending in live.members:
                            pending.finish_if_done()
                    # A member may have rows in other waves, so the wave can end before its members.
                    has_failed = all(pending.future.done() for pending in live.members)
                    if not live.wave.is_done and not has_failed:
                        at_its_end.pop_all()
                        self._waves.append(live)
            except Exception as error:
                for pending in live.members:
                    _fail(pending.future, error)
            if time.monotonic() >= give_up_at or (self._samples and len(self._waves) < MAX_WAVES):
                return

    def _gather(self) -> None:
        """Wait shortly for arriving samples, unless training waits or a wave is full."""
        give_up_at = time.monotonic() + MAX_GATHER_S
        while time.monotonic() < min(self._last_sample_at + GATHER_S, give_up_at):
            num_waiting = sum(len(pending.rows) for pending in self._samples)
            if num_waiting >= self._samples[0].num_slots or self._jobs or self._close_at:
                return
            time.sleep(0.0005)
