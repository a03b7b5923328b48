"""The one compute thread: training jobs in the order they were released, samples gathered in waves.

Nothing else touches torch. Jobs and waves take turns, so that neither a long evaluation nor a long
queue of training steps holds up the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from local_tinker.engine import Engine
from local_tinker.sampling import Row, SampleRequest, run_wave
from local_tinker.wire import sample_response

logger = logging.getLogger(__name__)

GATHER_S = 0.004  # a wave that is not full waits this long for company after the last arrival
MAX_GATHER_S = 0.05

Result = bytes | dict  # protobuf or JSON, as the protocol says for each kind of request
Job = Callable[[], Result]


@dataclass
class _PendingSample:
    engine: Engine
    request: SampleRequest
    rows: list[Row]
    future: Future[Result]

    def finish_if_done(self) -> None:
        if all(row.is_done for row in self.rows) and not self.future.done():
            self.future.set_result(
                sample_response([r.result() for r in self.rows], self.rows[0].prompt_logprobs)
            )


class Worker:
    """Runs jobs and waves until `close`."""

    def __init__(self) -> None:
        self._jobs: deque[tuple[Engine, Job, Future[Result]]] = deque()
        self._samples: list[_PendingSample] = []
        self._last_sample_at = 0.0
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="local-tinker-compute", daemon=True)
        self._thread.start()

    def submit(self, engine: Engine, job: Job) -> Future[Result]:
        """Queue a job on a model; jobs run one at a time in the order of their submission."""
        future: Future[Result] = Future()
        with self._changed:
            self._refuse_when_closing()
            self._jobs.append((engine, job, future))
            self._changed.notify()
        return future

    def sample(self, engine: Engine, request: SampleRequest) -> Future[Result]:
        """Queue a sample request; its rows join the waves that are formed next."""
        rows = [Row(request, index) for index in range(request.num_samples)]
        pending = _PendingSample(engine, request, rows, Future())
        with self._changed:
            self._refuse_when_closing()
            self._samples.append(pending)
            self._last_sample_at = time.monotonic()
            self._changed.notify()
        return pending.future

    def close(self) -> None:
        """Finish the job or wave in hand, refuse what is still queued, and end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _refuse_when_closing(self) -> None:
        if self._is_closing:
            raise RuntimeError("the service is shutting down")

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._jobs or self._samples or self._is_closing):
                    self._changed.wait()
                if self._is_closing:
                    break
                job = self._jobs.popleft() if self._jobs else None
            if job is not None:
                self._run_job(*job)
            if self._samples:
                self._run_one_wave()
        closed = RuntimeError("the service was shut down before this request ran")
        for _, _, future in self._jobs:
            future.set_exception(closed)
        for pending in self._samples:
            pending.future.set_exception(closed)

    def _run_job(self, engine: Engine, job: Job, future: Future[Result]) -> None:
        # The boundary of the service: whatever one request breaks is that request's answer, and the
        # thread that serves all the others goes on.
        torch.set_num_threads(engine.num_threads)
        try:
            future.set_result(job())
        except Exception as error:
            future.set_exception(error)

    def _run_one_wave(self) -> None:
        self._gather()
        with self._changed:
            first = self._samples[0]
            key = (id(first.engine), first.request.wave_key)
            members = [p for p in self._samples if (id(p.engine), p.request.wave_key) == key]
        rows = [row for pending in members for row in pending.rows if not row.is_done]
        rows = rows[: first.engine.num_slots - 1]  # one slot always stays a dummy
        torch.set_num_threads(first.engine.num_threads)
        try:
            run_wave(first.engine, rows)
        except Exception as error:
            for pending in members:
                if any(row in rows for row in pending.rows):
                    pending.future.set_exception(error)
        for pending in members:
            pending.finish_if_done()
        with self._changed:
            self._samples = [pending for pending in self._samples if not pending.future.done()]

    def _gather(self) -> None:
        """Wait shortly for arriving samples, unless training waits or the wave is full."""
        give_up_at = time.monotonic() + MAX_GATHER_S
        while time.monotonic() < min(self._last_sample_at + GATHER_S, give_up_at):
            num_waiting = sum(pending.request.num_samples for pending in self._samples)
            is_full = num_waiting >= self._samples[0].engine.num_slots - 1
            if is_full or self._jobs or self._is_closing:
                return
            time.sleep(0.0005)
