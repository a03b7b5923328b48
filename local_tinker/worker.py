"""The one compute thread: training jobs and waves of samples, in turns that are fair to all.

Nothing else touches torch. A run's jobs run in the order of their submission, the runs take turns,
and so do training as a whole and sampling as a whole: after a job, sampling gets as long as the
job took, token by token, so that neither long answers nor a long queue of steps hold up the other.
What nobody waits for is not computed: samples of a session that has ended are dropped, those of a
client that is away wait aside until it comes back, and what waves hold of both ends at the next
token.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

import torch

from local_tinker.background import Background
from local_tinker.checkpoints import StorageError
from local_tinker.engine import Engine
from local_tinker.peft_folders import FolderError
from local_tinker.sample_queue import ANYONE, Client, Kind, PendingSample, Result, SampleQueue
from local_tinker.sample_requests import SampleRequest
from local_tinker.sampling import Wave
from local_tinker.wire import NotFound, UserError, sample_response

logger = logging.getLogger(__name__)

GATHER_S = 0.015  # a wave that is not full waits this long for company after the last arrival
MAX_GATHER_S = 0.3
MIN_SLICE_S = 0.02  # how long waves are advanced between two jobs, at least
MAX_WAVES = 4  # each holds a cache of its own

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
        with contextlib.suppress(InvalidStateError):  # it was refused meanwhile
            future.set_result(result)


def _fail(future: Future[Result], error: Exception) -> None:
    """Answer with an error. Its frames are dropped, or they would hold tensors for half an hour."""
    if not isinstance(error, UserError | NotFound | StorageError | FolderError | Closed):
        logger.error("a request failed", exc_info=error)
    with contextlib.suppress(InvalidStateError):  # it was refused meanwhile
        future.set_exception(error.with_traceback(None))


def _sample_answer(pending: PendingSample) -> Result:
    return sample_response([row.result() for row in pending.rows], pending.rows[0].scores)


@dataclass
class _PendingJob:
    engine: Engine
    job: Job
    future: Future[Result]


@dataclass
class _LiveWave:
    wave: Wave
    members: list[PendingSample]  # without those that have their answers
    kind: Kind
    num_done: int = 0  # rows that had ended when the members were last looked at


class Worker:
    """Runs jobs and waves until `close`."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, deque[_PendingJob]] = OrderedDict()  # queue name -> jobs
        self._unanswered: dict[Client, dict[Future[Result], PendingSample]] = {}
        self._queue = SampleQueue()
        self._waves: deque[_LiveWave] = deque()  # the compute thread's own
        self._has_unwanted = False  # samples were dropped or set aside, and waves may hold rows
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
        """Jobs and sample requests that are not finished, without those that are set aside."""
        with self._changed:
            num_jobs = sum(len(queue) for queue in self._jobs.values())
            return num_jobs, sum(pending.is_wanted for pending in self._all_unanswered())

    @property
    def num_set_aside(self) -> int:
        """Sample requests of clients that are away."""
        with self._changed:
            return sum(not pending.is_wanted for pending in self._all_unanswered())

    def _all_unanswered(self) -> list[PendingSample]:
        return [p for of_client in self._unanswered.values() for p in of_client.values()]

    def submit(self, queue: str, engine: Engine, job: Job) -> Future[Result]:
        """Queue a job; the jobs of one queue run one at a time in the order of submission."""
        future: Future[Result] = Future()
        with self._changed:
            if self._close_at is not None:
                raise Closed
            self._jobs.setdefault(queue, deque()).append(_PendingJob(engine, job, future))
            self._changed.notify()
        return future

    def sample(
        self, engine: Engine, request: SampleRequest, client: Client = ANYONE
    ) -> Future[Result]:
        """Queue a sample request; its rows join the waves that are formed next."""
        pending = PendingSample(client, engine, request, time.monotonic())
        with self._changed:
            if self._close_at is not None:
                raise Closed
            self._unanswered.setdefault(client, {})[pending.future] = pending
            self._queue.add(pending)
            self._last_sample_at = pending.arrived_at
            self._changed.notify()
        return pending.future

    def refuse(self, queue: str, error: Exception) -> None:
        """Answer the jobs of a queue that have not begun with an error."""
        with self._changed:
            refused = self._jobs.pop(queue, deque())
        for pending in refused:
            _fail(pending.future, error)

    def cancel(self, future: Future[Result], error: Exception) -> bool:
        """Drop a sample request and answer it with an error; False when no such one is open."""
        with self._changed:
            found = [
                of_client[future] for of_client in self._unanswered.values() if future in of_client
            ]
            self._drop(found)
        for pending in found:
            _fail(pending.future, error)
        return bool(found)

    def drop_session(self, session_id: str, error: Exception) -> None:
        """Drop the sample requests of a session's clients and answer them with an error."""
        with self._changed:
            clients = [c for c in self._unanswered if c.session_id == session_id]
        for client in clients:
            self.drop_client(client, error)

    def drop_client(self, client: Client, error: Exception) -> None:
        """Drop the sample requests of a client and answer them with an error."""
        with self._changed:
            dropped = list(self._unanswered.get(client, {}).values())
            self._drop(dropped)
        for pending in dropped:
            _fail(pending.future, error)

    def _drop(self, dropped: Collection[PendingSample]) -> None:
        for pending in dropped:
            pending.is_wanted = False
            self._queue.remove(pending)
            self._forget(pending)
        self._has_unwanted = self._has_unwanted or bool(dropped)

    def _forget(self, pending: PendingSample) -> None:
        of_client = self._unanswered.get(pending.client, {})
        of_client.pop(pending.future, None)
        if not of_client:
            self._unanswered.pop(pending.client, None)

    def set_aside(self, client: Client) -> int:
        """Stop working on a client's samples until it is brought back; return how many they are."""
        with self._changed:
            own = list(self._unanswered.get(client, {}).values())
            for pending in own:
                pending.is_wanted = False
                self._queue.remove(pending)
            self._has_unwanted = self._has_unwanted or bool(own)
        return len(own)

    def bring_back(self, client: Client) -> None:
        """Go on with a client's samples that were set aside."""
        with self._changed:
            for pending in self._unanswered.get(client, {}).values():
                if not pending.is_wanted:
                    pending.is_wanted = True
                    if pending.waiting:
                        self._queue.add(pending)
            self._changed.notify()

    def close(self, drain_s: float = 0.0, limit_s: float | None = None) -> bool:
        """Work on for at most `drain_s`, refuse what is left with `Closed`, end the thread.

        The job in hand is not broken off; False when it goes on after `limit_s`, which it does
        behind the caller's back then, while the others are refused.
        """
        with self._changed:
            self._close_at = time.monotonic() + drain_s
            self._changed.notify()
        self._thread.join(limit_s)
        has_ended = not self._thread.is_alive()
        if not has_ended:
            self._refuse_all()
        return has_ended

    def _refuse_all(self) -> None:
        with self._changed:
            jobs = [pending for queue in self._jobs.values() for pending in queue]
            left = [*jobs, *self._all_unanswered()]
        for pending in left:
            _fail(pending.future, Closed())

    @property
    def _must_end(self) -> bool:
        """Whether the time to finish what is queued has run out."""
        return self._close_at is not None and time.monotonic() >= self._close_at

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._jobs or self._queue or self._waves or self._close_at):
                    self._changed.wait()
                is_idle = not (self._jobs or self._queue or self._waves)
                if self._must_end or (is_idle and self._close_at is not None):
                    break
                job = self._next_job()
            if job is not None:
                self._run_job(job)
            if self._queue:
                self._start_waves()
            if self._waves:
                self._advance_waves()
        self._refuse_all()

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

    # --- waves ------------------------------------------------------------------------------

    def _start_waves(self) -> None:
        """Form waves of the samples that wait, while there is room for waves."""
        if not self._waves:
            self._gather()
        in_flight = Counter(pending.client for live in self._waves for pending in live.members)
        while len(self._waves) < MAX_WAVES:
            with self._changed:
                kind = self._queue.next_kind(
                    {live.kind for live in self._waves},
                    in_flight,
                    MAX_WAVES - len(self._waves),
                    time.monotonic(),
                )
                if kind is None:
                    return
                taken = self._queue.take(kind)
            members = list(taken)
            in_flight.update(pending.client for pending in members)
            rows = [row for of_pending in taken.values() for row in of_pending]
            try:
                self._waves.append(_LiveWave(Wave(members[0].engine, rows), members, kind))
            except Exception as error:  # weights that cannot be loaded are their samples' answer
                self._give_up(members, error)

    def _give_up(self, members: Collection[PendingSample], error: Exception) -> None:
        """Answer samples with an error; what they have in other waves ends there."""
        with self._changed:
            self._drop(members)
        for pending in members:
            _fail(pending.future, error)

    def _advance_waves(self) -> None:
        """Advance waves by turns for about as long as the last job took."""
        give_up_at = time.monotonic() + max(MIN_SLICE_S, self._last_job_s)
        self._last_job_s = 0.0
        while self._waves and not self._must_end:
            live = self._waves[0]
            torch.set_num_threads(live.wave.engine.num_threads)
            turn_ends_at = time.monotonic() + MIN_SLICE_S
            try:
                while not (live.wave.is_done or self._has_unwanted):
                    live.wave.advance()
                    self._answer_members(live)
                    if time.monotonic() >= turn_ends_at:
                        break
            except Exception as error:
                self._give_up(live.members, error)
                self._waves.popleft().wave.close()
            else:
                self._waves.rotate(-1)
            if self._has_unwanted:
                self._end_unwanted()
            self._close_done()
            if time.monotonic() >= give_up_at or (self._queue and len(self._waves) < MAX_WAVES):
                return

    def _answer_members(self, live: _LiveWave) -> None:
        """Answer the samples whose last row has ended; rows may be in other waves, or wait."""
        num_done = sum(row.is_done for row in live.wave.rows)
        if num_done == live.num_done:
            return
        live.num_done = num_done
        answered = [p for p in live.members if all(row.is_done for row in p.rows)]
        with self._changed:
            for pending in answered:
                self._forget(pending)
        for pending in answered:
            _settle(pending.future, functools.partial(_sample_answer, pending))
        live.members = [p for p in live.members if not p.future.done()]

    def _end_unwanted(self) -> None:
        """End the rows that nobody waits for; those of an away client wait for it with new ones."""
        with self._changed:
            self._has_unwanted = False
            unwanted = {p for live in self._waves for p in live.members if not p.is_wanted}
            for pending in unwanted:
                pending.end_rows()
            for live in self._waves:
                live.members = [p for p in live.members if p.is_wanted]

    def _close_done(self) -> None:
        for live in [live for live in self._waves if live.wave.is_done]:
            self._waves.remove(live)
            live.wave.close()

    def _gather(self) -> None:
        """Wait shortly for arriving samples, unless training waits or a wave is full."""
        give_up_at = time.monotonic() + MAX_GATHER_S
        while time.monotonic() < min(self._last_sample_at + GATHER_S, give_up_at):
            if self._queue.fills_a_wave or self._jobs or self._close_at:
                return
            time.sleep(0.0005)
