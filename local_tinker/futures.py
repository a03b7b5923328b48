"""Results that clients ask for, one by one or all that were completed since they asked last.

Used on the server's event loop only, but for `Repeats`; the futures are answered by other threads.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from local_tinker.sample_queue import Client, Result
from local_tinker.waiting import Held, Wakes
from local_tinker.wire import NotFound, UserError
from local_tinker.worker import Closed

KEEP_RESULT_S = 60.0  # a result can be fetched again this long after it was fetched first
KEEP_UNCLAIMED_S = 1800.0  # a result that nobody fetches is kept this long
MAX_PENDING = 100_000  # futures at a time
MAX_REPEATS = 1000  # answers remembered in case their request comes again


class Target(NamedTuple):
    """Whose completions are asked for together: one client of a sampling session."""

    sampler_id: str
    clone_id: int


class Completion(NamedTuple):
    """A result is there; `num_bytes` where it is one that is sent as it stands."""

    cursor: int
    request_id: str
    has_failed: bool
    num_bytes: int | None


@dataclass
class CompletionLog:
    """What was completed for one client and not seen by it yet, numbered from 1.

    The client names the last number that it has seen, so an answer that is lost is given again.
    """

    client: Client
    num_completed: int = 0
    unseen: deque[Completion] = field(default_factory=deque)
    held: set[Held] = field(default_factory=set)

    def add(self, request_id: str, future: Future[Result]) -> None:
        self.num_completed += 1
        has_failed = future.exception() is not None
        result = None if has_failed else future.result()
        num_bytes = len(result) if isinstance(result, bytes) else None
        self.unseen.append(Completion(self.num_completed, request_id, has_failed, num_bytes))
        self.wake()

    def seen(self, cursor: int) -> None:
        while self.unseen and self.unseen[0].cursor <= cursor:
            self.unseen.popleft()

    def wake(self) -> None:
        for held in self.held:
            held.wake()


@dataclass
class _Entry:
    future: Future[Result]
    client: Client
    key: Hashable
    target: Target | None
    drop_at: float | None = None
    held: list[Held] = field(default_factory=list)  # the requests that wait for it now
    is_watched: bool = False

    def wake(self) -> None:
        for held in self.held:
            held.wake()


class Futures:
    """Results that clients ask for; a repeat of a request finds the future of the first one."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._by_key: dict[Hashable, str] = {}
        self._logs: dict[Target, CompletionLog] = {}  # of those that ask for completions
        self._wakes = Wakes()
        self.is_closed = False  # repeats are still answered then, new requests refused

    def __len__(self) -> int:
        return len(self._entries)

    def once(
        self,
        client: Client,
        key: Hashable,
        make: Callable[[], Future[Result]],
        target: Target | None = None,
    ) -> str:
        """Return the id of the future with this key, made now if the key is new."""
        if key not in self._by_key:
            if self.is_closed:
                raise Closed
            if len(self._entries) >= MAX_PENDING:
                raise UserError(
                    f"{MAX_PENDING} requests are unanswered or unclaimed; fetch results first"
                )
            request_id = uuid.uuid4().hex
            entry = self._entries[request_id] = _Entry(make(), client, key, target)
            self._by_key[key] = request_id
            if target is not None and target in self._logs:
                self._note_when_done(request_id, entry.future, self._logs[target])
        return self._by_key[key]

    def claim(self, request_id: str) -> tuple[Future[Result], Client]:
        """Return a future and whose it is."""
        if request_id not in self._entries:
            raise NotFound(f"request {request_id!r} is not known here")
        entry = self._entries[request_id]
        return entry.future, entry.client

    def fetched(self, request_id: str) -> None:
        if request_id in self._entries:
            self._entries[request_id].drop_at = time.monotonic() + KEEP_RESULT_S

    @contextlib.contextmanager
    def waking(self, request_id: str, held: Held) -> Iterator[None]:
        """Wake a request in the event loop once the result that it waits for is there.

        The future is told once, however often its client asks while it is computed.
        """
        entry = self._entries[request_id]
        if not entry.is_watched:
            entry.is_watched = True
            self._wakes.when_done(entry.future, entry.wake)
        entry.held.append(held)
        try:
            yield
        finally:
            entry.held.remove(held)

    def log(self, target: Target, client: Client) -> CompletionLog:
        """What was completed for a client; kept from the first time that somebody asks for it."""
        if target not in self._logs:
            log = self._logs[target] = CompletionLog(client)
            for request_id, entry in self._entries.items():
                if entry.target == target:
                    self._note_when_done(request_id, entry.future, log)
        return self._logs[target]

    def _note_when_done(self, request_id: str, future: Future[Result], log: CompletionLog) -> None:
        if future.done():
            log.add(request_id, future)
        else:
            self._wakes.when_done(future, lambda: log.add(request_id, future))

    def open_of(self, target: Target) -> list[str]:
        """The requests of a client that have no result."""
        return [
            request_id
            for request_id, entry in self._entries.items()
            if entry.target == target and not entry.future.done()
        ]

    def forget(self, target: Target, request_ids: Iterable[str]) -> None:
        """Drop results that their client says it has; what is not its own, or not done, stays."""
        for request_id in request_ids:
            entry = self._entries.get(request_id)
            if entry is not None and entry.target == target and entry.future.done():
                self._drop(request_id)

    def end_session(self, session_id: str) -> None:
        """Wake who waits for completions of a session that has ended, and drop its results soon."""
        for target in [t for t, log in self._logs.items() if log.client.session_id == session_id]:
            self._logs.pop(target).wake()
        self.purge(session_id)

    def purge(self, ended_session: str | None = None) -> None:
        """Drop results fetched or forgotten long ago, and sooner those of an ended session."""
        now = time.monotonic()
        for request_id, entry in list(self._entries.items()):
            if entry.drop_at is None and entry.future.done():
                has_ended = entry.client.session_id == ended_session
                entry.drop_at = now + (KEEP_RESULT_S if has_ended else KEEP_UNCLAIMED_S)
            if entry.drop_at is not None and entry.drop_at <= now:
                self._drop(request_id)

    def _drop(self, request_id: str) -> None:
        self._by_key.pop(self._entries.pop(request_id).key, None)

    def fail_all(self, error: Exception) -> None:
        """Answer whatever is still open with an error."""
        for entry in list(self._entries.values()):
            with contextlib.suppress(InvalidStateError):  # it has its answer
                entry.future.set_exception(error)


class Repeats:
    """Answers to requests that have no number of their own, by the key that is sent with them.

    A client that did not get the answer sends the request again with the same key. Used from
    several threads: a repeat that comes while the first is at work waits for it.
    """

    def __init__(self) -> None:
        self._answers: dict[Hashable, Any] = {}
        self._lock = threading.Lock()

    def once(self, key: Hashable | None, make: Callable[[], Any]) -> Any:
        """Return the answer with this key, made now if the key is new; an error is not kept."""
        if key is None:
            return make()
        with self._lock:
            if key not in self._answers:
                self._answers[key] = make()
                if len(self._answers) > MAX_REPEATS:
                    del self._answers[next(iter(self._answers))]  # the oldest
            return self._answers[key]
