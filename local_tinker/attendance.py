"""Which clients are there: a process that is dead, or at a standstill, asks no more.

Whoever waits for a result is there, and whoever asked for something a moment ago. A client that
does neither for `AWAY_S` is away: its samples are set aside until it asks again. It may have died
at any point, also between its requests. One that comes back was merely slow, and each time it is
given twice as long before the next, up to `MAX_PATIENCE_S`: what waves hold of samples that are set
aside is computed anew, and so the slowest client loses little. A heartbeat does not count, since
the clones of a sampling client send it for one session from several processes.
Used on the server's event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator

from local_tinker.sample_queue import Client
from local_tinker.wire import UserError
from local_tinker.worker import Worker

logger = logging.getLogger(__name__)

AWAY_S = 1.5  # the SDK asks again one second after a connection has failed
MAX_PATIENCE_S = 24.0
GONE_S = 600.0  # samples of a client that is away for longer are dropped, as with whole sessions


class Attendance:
    """Tells the worker whose samples to set aside and to bring back."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._num_held: Counter[Client] = Counter()
        self._patience_s: dict[Client, float] = {}  # of those that came back
        self._leaves_at: dict[Client, float] = {}  # if it holds no request and asks for nothing
        self._timers: dict[Client, asyncio.TimerHandle] = {}  # may come early, and look again
        self._away_since: dict[Client, float] = {}

    def heard(self, client: Client) -> None:
        """Note a request of a client."""
        if self._away_since.pop(client, None) is not None:
            self._worker.bring_back(client)
            patience_s = self._patience_s.get(client, AWAY_S)
            self._patience_s[client] = min(2 * patience_s, MAX_PATIENCE_S)
            logger.info("session %s: a client of it is back", client.session_id)
        if not self._num_held[client]:
            self._watch(client)

    @contextlib.contextmanager
    def holding(self, client: Client) -> Iterator[None]:
        """Note a request that waits for a result, until it is answered or its connection ends."""
        self.heard(client)
        self._num_held[client] += 1
        try:
            yield
        finally:
            self._num_held[client] -= 1
            if not self._num_held[client]:
                del self._num_held[client]
                self._watch(client)

    def forget(self, session_id: str) -> None:
        """Forget the clients of a session that has ended."""
        for noted in (self._patience_s, self._leaves_at, self._away_since):
            for client in [client for client in noted if client.session_id == session_id]:
                del noted[client]
        for client in [client for client in self._timers if client.session_id == session_id]:
            self._timers.pop(client).cancel()

    def drop_gone(self) -> None:
        """Drop the samples of clients that have been away for long, though their session goes on.

        Without this the clones that die in a session of weeks would leave all they asked for.
        """
        now = time.monotonic()
        for client, since in list(self._away_since.items()):
            if now - since > GONE_S:
                message = f"this sample's client was away for {GONE_S / 60:.0f} minutes; ask again"
                self._worker.drop_client(client, UserError(message))
                del self._away_since[client]
                self._patience_s.pop(client, None)

    def _watch(self, client: Client) -> None:
        loop, patience_s = asyncio.get_running_loop(), self._patience_s.get(client, AWAY_S)
        self._leaves_at[client] = loop.time() + patience_s
        if client not in self._timers:
            self._timers[client] = loop.call_later(patience_s, self._look, client)

    def _look(self, client: Client) -> None:
        """See whether a client is away; one that holds a request is watched again at its end."""
        loop, leaves_at = asyncio.get_running_loop(), self._leaves_at[client]
        if not self._num_held[client] and loop.time() < leaves_at:
            self._timers[client] = loop.call_at(leaves_at, self._look, client)
            return
        del self._timers[client], self._leaves_at[client]
        num_set_aside = 0 if self._num_held[client] else self._worker.set_aside(client)
        if num_set_aside:
            self._away_since[client] = time.monotonic()
            logger.info(
                "session %s: a client asks no more; %d samples of it are set aside",
                client.session_id,
                num_set_aside,
            )
