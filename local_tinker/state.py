"""What the service remembers between requests: sessions, runs, samplers, futures, and their order.

Used on the server's event loop only; the work itself is handed to the worker's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from local_tinker import checkpoints
from local_tinker.attendance import Attendance
from local_tinker.engine import Engine
from local_tinker.futures import Futures, Target
from local_tinker.lora import LoraShape
from local_tinker.memory import RunMemory
from local_tinker.sample_queue import Client
from local_tinker.sample_requests import SampleRequest
from local_tinker.training import TrainingRun
from local_tinker.wire import NotFound, UserError
from local_tinker.worker import Closed, Job, Result, Worker

logger = logging.getLogger(__name__)

MAX_AHEAD = 100_000  # how far a run's request may be ahead of the next one to run
GAP_S = 10.0  # how long a request waits for a missing lower sequence number
SESSION_SILENCE_S = 600.0  # clients send a heartbeat every 10 s, but a debugger may stop one
MAX_SESSIONS = 10_000
MAX_UNNAMED = 16  # weights of a run that were saved without a name, the last used ones
CLONE_BLOCK = 1_000_000_000  # the SDK numbers a clone's samples from its id times this


@dataclass
class RunQueue:
    """Releases a run's requests in ascending `seq_id`, passing over the numbers of refused ones.

    A number that is missing is waited for, since parts of one batch may arrive in any order; when
    it does not come within `GAP_S` it is passed over, and refused if it comes after all.
    """

    next_seq_id: int = 1
    waiting: dict[int, Callable[[], None]] = field(default_factory=dict)
    gap_timer: asyncio.TimerHandle | None = None

    def add(self, seq_id: int, release: Callable[[], None]) -> None:
        if seq_id < self.next_seq_id:
            raise UserError(
                f"request number {seq_id} of this run came after number {self.next_seq_id - 1} had "
                "been run; running it now would change the order, so it was refused"
            )
        if seq_id > self.next_seq_id + MAX_AHEAD:
            raise UserError(
                f"request number {seq_id} of this run is too far ahead of {self.next_seq_id}, "
                "which is next"
            )
        self.waiting[seq_id] = release
        self._advance()

    def pass_over(self, seq_id: int) -> None:
        is_near = self.next_seq_id <= seq_id <= self.next_seq_id + MAX_AHEAD
        if is_near and seq_id not in self.waiting:
            self.add(seq_id, lambda: None)

    def release_all(self) -> None:
        """Release what waits, whatever numbers are missing."""
        while self.waiting:
            self._advance(skip_gap=True)

    def _advance(self, skip_gap: bool = False) -> None:
        before = self.next_seq_id
        if skip_gap and self.waiting:
            self.next_seq_id = min(self.waiting)
        while self.next_seq_id in self.waiting:
            self.waiting.pop(self.next_seq_id)()
            self.next_seq_id += 1
        if self.gap_timer is not None and (self.next_seq_id != before or not self.waiting):
            self.gap_timer.cancel()  # that gap is closed
            self.gap_timer = None
        if self.waiting and self.gap_timer is None:
            self.gap_timer = asyncio.get_running_loop().call_later(GAP_S, self._advance, True)


@dataclass
class Run:
    """A training run as the protocol knows it; its weights are in the worker's `RunMemory`."""

    run_id: str
    session_id: str
    engine: Engine
    shape: LoraShape
    user_metadata: dict[str, str]
    last_request_at: float
    queue: RunQueue = field(default_factory=RunQueue)
    # Samplers of weights without a path, by their id, the last used one at the end.
    unnamed: OrderedDict[str, Sampler] = field(default_factory=OrderedDict)


@dataclass
class Sampler:
    sampler_id: str
    session_id: str
    engine: Engine
    model_path: str | None
    weights: Path | None
    num_clones: int = 0  # that asked for an id; the first client of a sampler has 0
    run_id: str | None = None  # whose weights without a path it has
    is_gone: bool = False  # those were deleted
    waiting: list[Future[Result]] = field(default_factory=list)  # samples that have no answer yet

    @property
    def is_idle(self) -> bool:
        """Whether its weights are saved, and no sample of them is on its way."""
        self.waiting = [future for future in self.waiting if not future.done()]
        return not self.waiting and self.weights is not None and self.weights.is_dir()


@dataclass
class Session:
    session_id: str
    checkpoint_dir: Path
    last_seen_at: float
    run_ids: list[str] = field(default_factory=list)
    sampler_ids: list[str] = field(default_factory=list)
    unnamed_saves: list[Path] = field(default_factory=list)


class State:
    """The service's memory, and the way from a request to the worker."""

    def __init__(self, worker: Worker, memory: RunMemory) -> None:
        self.worker = worker
        self.memory = memory
        self.engines: dict[str, Engine] = {}
        self.checkpoint_dirs: dict[str, Path] = {}  # API key -> folder of the sessions made with it
        self.sessions: dict[str, Session] = {}
        self.runs: dict[str, Run] = {}
        self.samplers: dict[str, Sampler] = {}
        self.futures = Futures()
        self.attendance = Attendance(worker)
        self.started_at = time.time()

    # --- look-ups ---------------------------------------------------------------------------

    def session(self, session_id: str) -> Session:
        if session_id not in self.sessions:
            raise NotFound(
                f"session {session_id!r} is not known here; it was finished, was silent for "
                f"{SESSION_SILENCE_S / 60:.0f} minutes, or the service was restarted"
            )
        session = self.sessions[session_id]
        session.last_seen_at = time.monotonic()
        return session

    def named_engines(self) -> dict[str, Engine]:
        """The base models under all names that they are served by: what each was loaded from is one
        as well."""
        named = dict(self.engines)
        for engine in self.engines.values():
            named.setdefault(engine.path, engine)
        return named

    def engine_named(self, base_model: str) -> Engine:
        if (engine := self.named_engines().get(base_model)) is not None:
            return engine
        raise NotFound(
            f"base model {base_model!r} is not served here; this service has "
            f"{', '.join(sorted(self.engines))}"
        )

    def run(self, run_id: str) -> Run:
        if run_id not in self.runs:
            raise NotFound(
                f"training run {run_id!r} is not in memory; load its checkpoint into a new run"
            )
        run = self.runs[run_id]
        run.last_request_at = time.time()
        self.session(run.session_id)
        return run

    def sampler(self, sampler_id: str) -> Sampler:
        if sampler_id not in self.samplers:
            raise NotFound(f"sampling session {sampler_id!r} is not known here")
        sampler = self.samplers[sampler_id]
        self.session(sampler.session_id)
        return sampler

    @property
    def roots(self) -> list[Path]:
        """All checkpoint folders; a path from one session can be loaded in another."""
        return list(dict.fromkeys(self.checkpoint_dirs.values()))

    def find_checkpoint(self, path: str) -> Path:
        return checkpoints.find(self.roots, checkpoints.parse_path(path))

    # --- work -------------------------------------------------------------------------------

    def add_session(self, checkpoint_dir: Path) -> Session:
        if len(self.sessions) >= MAX_SESSIONS:
            raise UserError(f"{MAX_SESSIONS} sessions are open; finish some first")
        session = Session(uuid.uuid4().hex, checkpoint_dir, time.monotonic())
        self.sessions[session.session_id] = session
        return session

    def add_run(
        self,
        session_id: str,
        model_seq_id: int,
        engine: Engine,
        shape: LoraShape,
        user_metadata: dict[str, str],
        make: Callable[[str], TrainingRun],
    ) -> str:
        """Register a run now, make it behind a future; a repeat gets the first one's future."""
        session = self.session(session_id)
        run_id = f"{session_id}:train:{model_seq_id}"
        key = ("model", session_id, model_seq_id)

        def job() -> Result:
            self.memory.add(engine, session.checkpoint_dir, make(run_id))
            logger.info("run %s: created on %s, %s", run_id, engine.name, shape)
            return {"model_id": run_id}

        def start() -> Future[Result]:
            if run_id in self.runs:
                raise UserError(f"training run {run_id!r} exists; take another model_seq_id")
            future = self.worker.submit(run_id, engine, job)
            session.run_ids.append(run_id)
            self.runs[run_id] = Run(run_id, session_id, engine, shape, user_metadata, time.time())
            return future

        self.attendance.heard(Client(session_id))
        return self.futures.once(Client(session_id), key, start)

    def submit_in_order(
        self, run_id: str, seq_id: int, job: Callable[[TrainingRun], Result]
    ) -> str:
        """Queue a job at its place in its run's order; a repeat gets the first one's future."""
        run = self.run(run_id)

        def release(future: Future[Result]) -> None:
            try:
                submitted = self.worker.submit(
                    run_id, run.engine, lambda: job(self.memory.get(run_id))
                )
            except Closed as error:
                with contextlib.suppress(InvalidStateError):  # it has its answer
                    future.set_exception(error)
            else:
                _chain(submitted, future)

        def start() -> Future[Result]:
            future: Future[Result] = Future()
            run.queue.add(seq_id, lambda: release(future))
            return future

        client = Client(run.session_id)
        self.attendance.heard(client)
        return self.futures.once(client, ("train", run_id, seq_id), start)

    def submit_sample(
        self, sampler: Sampler, seq_id: int, make_request: Callable[[], SampleRequest]
    ) -> str:
        """Queue a sample; a repeat gets the first one's future."""
        client = Client(sampler.session_id, seq_id // CLONE_BLOCK)
        self.attendance.heard(client)
        run = None if sampler.run_id is None else self.runs.get(sampler.run_id)
        if run is not None and sampler.sampler_id in run.unnamed:
            run.unnamed.move_to_end(sampler.sampler_id)

        def start() -> Future[Result]:
            if sampler.is_gone:
                raise UserError(
                    f"the weights of sampling session {sampler.sampler_id!r} are gone: they were "
                    f"saved without a name, and of these the {MAX_UNNAMED} of a run that were "
                    "used last are kept; save what you go on sampling from under a name"
                )
            future = self.worker.sample(sampler.engine, make_request(), client)
            if sampler.run_id is not None:
                sampler.waiting.append(future)
            return future

        key = ("sample", sampler.sampler_id, seq_id)
        return self.futures.once(client, key, start, Target(sampler.sampler_id, client.clone_id))

    def cancel_sample(self, request_id: str) -> None:
        """Drop a sample that its client does not wait for; one that is answered stays so."""
        future, _ = self.futures.claim(request_id)
        was_dropped = self.worker.cancel(
            future, UserError("this sample was cancelled by its client")
        )
        if not was_dropped and not future.done():
            raise UserError(f"request {request_id!r} is no sample; only samples can be cancelled")

    @contextlib.contextmanager
    def passing_over_refused(self, run_id: str | None, seq_id: int | None) -> Iterator[None]:
        """Let a run go on after a refused request, which the client will not send again."""
        try:
            yield
        except (UserError, NotFound):
            self.pass_over(run_id, seq_id)
            raise

    @contextlib.contextmanager
    def passing_over_malformed(self, body: bytes) -> Iterator[None]:
        """Let a run go on after a request that was not understood, if it says which one it was."""
        try:
            yield
        except ValidationError:
            try:
                sent = json.loads(body)
            except (ValueError, RecursionError):  # which is no number of any run
                sent = None
            if isinstance(sent, dict):
                self.pass_over(sent.get("model_id"), sent.get("seq_id"))
            raise

    def pass_over(self, run_id: object, seq_id: object) -> None:
        """Count a number as handled; whatever a malformed request held in these places is fine."""
        if isinstance(run_id, str) and isinstance(seq_id, int) and run_id in self.runs:
            self.runs[run_id].queue.pass_over(seq_id)

    def add_sampler(self, sampler: Sampler) -> None:
        self.samplers[sampler.sampler_id] = sampler
        self.session(sampler.session_id).sampler_ids.append(sampler.sampler_id)

    def add_unnamed_sampler(self, sampler: Sampler, run: Run, weights: Path) -> None:
        """Add a sampler of weights without a path, and delete those of the run that were used
        longest ago: a client that trains by sampling saves anew before each step."""
        sampler.run_id = run.run_id
        session = self.session(sampler.session_id)
        session.unnamed_saves.append(weights)
        self.add_sampler(sampler)
        run.unnamed[sampler.sampler_id] = sampler
        idle = [one for one in run.unnamed.values() if one.is_idle]
        for old in idle[: max(0, len(run.unnamed) - MAX_UNNAMED)]:
            assert old.weights is not None, "it was saved without a path"
            del run.unnamed[old.sampler_id]
            old.is_gone = True
            session.unnamed_saves.remove(old.weights)
            self._submit_last("samplers", old.engine, _delete_weights(old.engine, old.weights))

    def finish_session(self, session_id: str) -> None:
        """Forget a session with its runs, samplers and queued work; named checkpoints stay."""
        session = self.sessions.pop(session_id, None)
        if session is None:
            return
        self.attendance.forget(session_id)
        self.worker.drop_session(session_id, UserError("the session of this sample has ended"))
        self._forget_samplers(session)
        for run_id in session.run_ids:
            run = self.runs.pop(run_id)
            run.queue.release_all()  # also what waits for a number that never came
            self.worker.refuse(run_id, UserError("the session of this run has ended"))
            self._submit_last(run_id, run.engine, self._drop(run_id, session.unnamed_saves))
        self.futures.end_session(session_id)

    def _forget_samplers(self, session: Session) -> None:
        """Forget a session's samplers, and the weights that no other session samples from."""
        ended = [self.samplers.pop(sampler_id) for sampler_id in session.sampler_ids]
        in_use = {sampler.weights for sampler in self.samplers.values()}
        for sampler in ended:
            if sampler.weights is not None and sampler.weights not in in_use:
                in_use.add(sampler.weights)  # once
                self._submit_last(
                    "samplers", sampler.engine, _forget_weights(sampler.engine, sampler.weights)
                )

    def _submit_last(self, queue: str, engine: Engine, job: Job) -> None:
        """Queue what cleans up after a session."""
        if not self.worker.is_alive:
            job()  # the service has closed, so nothing else touches the models now
            return
        with contextlib.suppress(Closed):  # it is closing, and its memory ends with it
            self.worker.submit(queue, engine, job)

    def _drop(self, run_id: str, unnamed_saves: list[Path]) -> Job:
        def job() -> Result:
            self.memory.drop(run_id)
            for directory in unnamed_saves:
                checkpoints.discard(directory)
            return {}

        return job

    def housekeeping(self) -> None:
        """What has to be done now and then: who is silent for long is forgotten."""
        now = time.monotonic()
        for session in list(self.sessions.values()):
            if now - session.last_seen_at > SESSION_SILENCE_S:
                logger.info("session %s: silent, ended", session.session_id)
                self.finish_session(session.session_id)
        self.attendance.drop_gone()
        self.futures.purge()


def _forget_weights(engine: Engine, weights: Path) -> Job:
    def job() -> Result:
        engine.forget_sampler(weights)
        return {}

    return job


def _delete_weights(engine: Engine, weights: Path) -> Job:
    def job() -> Result:
        engine.forget_sampler(weights)
        checkpoints.discard(weights)
        return {}

    return job


def _chain(source: Future[Result], target: Future[Result]) -> None:
    def copy(done: Future[Result]) -> None:
        error = done.exception()
        with contextlib.suppress(InvalidStateError):  # it has its answer
            if error is not None:
                target.set_exception(error)
            else:
                target.set_result(done.result())

    source.add_done_callback(copy)
