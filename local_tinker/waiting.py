"""Requests that are held until something is done: results are waited for, not asked for.

The compute thread finishes results in bursts, a wave of samples at a time. All that are done before
the event loop comes to look wake it by one call: each call costs both threads more than it says.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from starlette.types import Receive

HOLD_S = 20.0  # how long a request waits for a result; the SDK gives up at 45


class Wakes:
    """Calls back in the event loop when futures are done that other threads answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due: list[Callable[[], None]] = []

    def when_done(self, future: Future[Any], wake: Callable[[], None]) -> None:
        """Call `wake` in the running event loop once the future is done."""
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: self._add(loop, wake))

    def _add(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        with self._lock:
            self._due.append(wake)
            is_first = len(self._due) == 1
        if is_first:
            loop.call_soon_threadsafe(self._call_due)

    def _call_due(self) -> None:
        with self._lock:
            due, self._due = self._due, []
        for wake in due:
            wake()


class Held:
    """One request that waits; `wake` ends the wait, in the event loop."""

    def __init__(self) -> None:
        self._limit: asyncio.Timeout | None = None
        self._is_awake = False

    def wake(self) -> None:
        self._is_awake = True
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def wait(self, receive: Receive, limit_s: float = HOLD_S) -> bool:
        """Wait until `wake` or for `limit_s`; False when the client closed the connection.

        The wait is for the connection's end, and `wake` breaks it off like a time limit: a task or
        an event beside it would cost as much again.
        """
        if self._is_awake:
            return True
        try:
            async with asyncio.timeout(limit_s) as self._limit:
                while (await receive())["type"] != "http.disconnect":
                    pass  # what is left of the request
                return False
        except TimeoutError:
            return True
        finally:
            self._limit = None
