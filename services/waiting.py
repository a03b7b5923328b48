"""Waiting for what talks to a service, without being deaf to Ctrl-C or silent meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SLOW_S = 5  # after which it is said that an answer is waited for


async def aside(work: Callable[[], T]) -> T:
    """Do what waits for a service, as the making of clients does, without blocking who awaits it.

    In a thread that nobody waits for at the end: the SDK waits for minutes and cannot be stopped
    (0.38), so that Ctrl-C would not be heard.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[asyncio.Task[T]] = loop.create_future()

    async def worked() -> T:
        return work()

    async def in_task() -> asyncio.Task[T]:
        task = asyncio.create_task(worked())
        await asyncio.wait([task])
        return task

    def tell(task: asyncio.Task[T]) -> None:
        if not ended.done():
            ended.set_result(task)

    def do() -> None:
        task = asyncio.run(in_task())
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, task)

    threading.Thread(target=do, daemon=True, name="waiting for a service").start()
    return (await ended).result()


async def saying(work: Coroutine[Any, Any, T], say: Callable[[], None]) -> T:
    """Wait for what a service answers; after `SLOW_S` it is said that it is waited for."""
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait([task], timeout=SLOW_S)
        if not done:
            say()
        return await task
    finally:
        task.cancel()
