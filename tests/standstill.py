"""The service at a standstill: its compute thread waits until a test has seen all begin."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import tinker

from local_tinker.sampling import Wave
from sdk_client import PROMPT, sample

SHORT = {"max_tokens": 20, "temperature": 1.0, "stop": []}
LONG = {**SHORT, "max_tokens": 440}
GIVE_UP_S = 120.0


async def until(is_met: Callable[[], bool]) -> None:
    """Wait, but not for ever, for what does come."""
    give_up_at = time.monotonic() + GIVE_UP_S
    while not is_met():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.01)


def ask(sampler: tinker.SamplingClient, num: int, **params: Any) -> list[asyncio.Task[Any]]:
    """Begin `num` samples, each with a seed of its own."""
    return [
        asyncio.ensure_future(sample(sampler, PROMPT, seed=seed, **params)) for seed in range(num)
    ]


class Standstill:
    """Makes the compute thread wait, from the third token that it computes, until `end` is called.

    So nothing ends before a test has seen all of it begin, however fast the machine is.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._may_go_on = threading.Event()
        self.num_advanced = 0
        advance = Wave.advance

        def held_up(wave: Wave) -> None:
            if self.num_advanced == 3:
                self._may_go_on.wait(GIVE_UP_S)
            self.num_advanced += 1
            advance(wave)

        monkeypatch.setattr(Wave, "advance", held_up)

    def end(self) -> None:
        self._may_go_on.set()
