"""Which clients are there: a process that dies closes all its connections, and asks no more.

A client that waited for results, lost a connection over it and waits for none since `AWAY_S` is
away: its samples are set aside until it asks again. A heartbeat does not count, since the clones of
a sampling client send it for one session from several processes; nor does another request alone,
since a dead client's last ones may be read after its connections have been seen to close.
Used on the server's event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from local_tinker.sample_queue import Client
from local_tinker.worker import Worker

logger = logging.getLogger(__name__)

AWAY_S = 1.5  # the SDK asks again one second after a connection has failed


@dataclass
class Hold:
    """A request that waits for a result."""

    is_lost: bool = False  # its connection closed before it was answered


class Attendance:
    """Tells the worker whose samples to set aside and to bring back."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._num_held: Counter[Client] = Counter()
        self._losers: set[Client] = set()  # have lost a connection, and not asked since
        self._timers: dict[Client, asyncio.TimerHandle] = {}
        self._away: set[Client] = set()

    def heard(self, client: Client) -> None:
        """Note a request of a client."""
        if client in self._away:
            self._away.discard(client)
            self._worker.bring_back(client)
            logger.info("session %s: a client of it is back", client.session_id)
        if client in self._losers and not self._num_held[client]:
            self._watch(client)

    @contextlib.contextmanager
    def holding(self, client: Client) -> Iterator[Hold]:
        """Note a request that waits for a result; the caller says of it when it is lost."""
        self._losers.discard(client)
        self._stop_watching(client)
        self.heard(client)
        self._num_held[client] += 1
        hold = Hold()
        try:
            yield hold
        finally:
            self._num_held[client] -= 1
            if hold.is_lost:
                self._losers.add(client)
            if not self._num_held[client]:
                del self._num_held[client]
                if client in self._losers:
                    self._watch(client)

    def forget(self, session_id: str) -> None:
        """Forget the clients of a session that has ended."""
        for client in [c for c in self._losers if c.session_id == session_id]:
            self._losers.discard(client)
            self._away.discard(client)
            self._stop_watching(client)

    def _watch(self, client: Client) -> None:
        self._stop_watching(client)
        loop = asyncio.get_running_loop()
        self._timers[client] = loop.call_later(AWAY_S, self._leave, client)

    def _stop_watching(self, client: Client) -> None:
        if client in self._timers:
            self._timers.pop(client).cancel()

    def _leave(self, client: Client) -> None:
        del self._timers[client]
        num_set_aside = self._worker.set_aside(client)
        if not num_set_aside:
            self._losers.discard(client)
            return
        self._away.add(client)
        logger.info(
            "session %s: a client closed its connections; %d samples of it are set aside",
            client.session_id,
            num_set_aside,
        )
