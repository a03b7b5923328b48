"""Many requests, so many of them at once, and no more of the others than is about to be asked.

What is asked of a service waits for its turn as the item that it is made from; it is made (a prompt
rendered, a task begun) shortly before. So the first request goes out at once, and a hundred
thousand questions take the memory of those that are on their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

AHEAD = 2  # times as many are begun as may ask, so that what follows an answer holds up no request


async def in_order(
    items: Iterable[T], num_at_once: int, work: Callable[[T], Awaitable[U]]
) -> list[U]:
    """What `work` gives for each item, in their order. `AHEAD * num_at_once` are worked on at once;
    `work` has to wait for a slot where it asks. Where one raises, the others are called off."""
    waiting = enumerate(items)
    found: dict[int, U] = {}

    async def take() -> None:
        for place, item in waiting:
            found[place] = await work(item)

    workers = [asyncio.ensure_future(take()) for _ in range(AHEAD * num_at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:  # where one has failed, or the run is left
            worker.cancel()
    return [found[place] for place in range(len(found))]
