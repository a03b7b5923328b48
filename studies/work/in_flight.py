"""What trials side by side may have in flight together, and the files and connections of that.

Over plain HTTP each request on its way is a connection, and a second one while it is sent; so all
that many trials ask for at once is bounded, however many they are.
"""

from __future__ import annotations

import contextlib
import math
import resource
from collections.abc import Sequence
from typing import NamedTuple

from config_schema import TrainingConfig
from loop.planning.steps import most_in_flight
from loop.rounds.depth import FEWEST
from loop.rounds.sharing import Sharing
from services.shared_clients import MAX_RUNS

# Twice what one run asks for (evaluation.concurrency, 128): a service that one run keeps busy is
# kept busy while the other half is on its way. Their 512 connections are half of what most systems
# let a process hold open.
MOST_ANSWERS = 256

FILES_OF_ITSELF = 512  # libraries, logs, the embedded service
FILES_OF_A_SESSION = 32  # heartbeats, and connections that its clients keep for the next request
# Its ledger, lock, journals and log, the posting and both results of its fewest steps, and saves.
FILES_OF_A_TRIAL = 8 + 3 * FEWEST + 4


class InFlight(NamedTuple):
    """The most that trials have in flight together, but for the fewest steps of each."""

    answers: int
    steps: int


class Shared(NamedTuple):
    """What trials share, and what to do where this process may not hold what that takes."""

    sharing: Sharing
    warning: str | None


def sharing_of(configs: Sequence[TrainingConfig], num_parallel: int) -> Shared:
    """What trials of these settings share; bounded together where they are side by side, for one
    alone has the bounds of its settings."""
    if num_parallel == 1:
        return Shared(Sharing(), None)
    most = in_flight_of(configs)
    return Shared(Sharing(most.answers), allow_open_files(num_parallel, most))


def in_flight_of(configs: Sequence[TrainingConfig]) -> InFlight:
    """What trials share; never less than the settings of one of them let it have alone."""
    answers = [config.evaluation.concurrency for config in configs]
    steps = [most_in_flight(config) for config in configs]
    return InFlight(max([MOST_ANSWERS, *answers]), max(steps, default=0))


def files_needed(num_parallel: int, most: InFlight) -> int:
    """Files and connections that trials side by side may hold open."""
    # The SDK lets go of a session's connections only some time after it has ended.
    num_sessions = 2 * math.ceil(num_parallel / MAX_RUNS)
    of_requests = 2 * most.answers + 3 * most.steps
    of_sessions = num_sessions * FILES_OF_A_SESSION
    return FILES_OF_ITSELF + of_requests + of_sessions + num_parallel * FILES_OF_A_TRIAL


def allow_open_files(num_parallel: int, most: InFlight) -> str | None:
    """Have this process hold as many files open as trials side by side may need; what to do where
    it may not."""
    needed = files_needed(num_parallel, most)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY or allowed >= needed:
        return None
    return (
        f"{num_parallel} trials at once may hold {needed:,} files and connections open, and this "
        f"process may hold {allowed:,} (ulimit -n). Raise that, or lower --parallel."
    )
