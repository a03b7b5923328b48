"""A thread whose end can be waited for again after a wait that a signal broke off."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background(threading.Thread):
    """A daemon thread that is alive for as long as its work goes on.

    Up to Python 3.12 a `join` that ends with a signal handler's exception counts the thread as
    ended, although it runs on (python/cpython#90882); who waits then is told that nothing touches
    torch or the sockets any more, while it does.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(target=work, name=name, daemon=True)
        self._is_over = threading.Event()

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._is_over.set()

    def is_alive(self) -> bool:
        return self.ident is not None and not self._is_over.is_set()

    def join(self, timeout: float | None = None) -> None:
        if self._is_over.wait(timeout):
            super().join(timeout)
