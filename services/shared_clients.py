"""Sessions on services, shared by the runs of a process that are at work at the same time.

A session has its own heartbeat, HTTP clients and connections, so a hundred runs with one each hold
a thousand connections. Runs with one address and one key therefore share a session. A run with a
key of its own (on the embedded service a key names the run's folder) has a session of its own.
Nothing here closes one: whoever leaves last is told to close the session, and as what.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Literal

from services.held_up import HoldUps
from services.sdk import Clients, open_clients
from services.waiting import aside

Status = Literal["success", "interrupted", "errored"]  # from the best to the worst
WORST_FIRST: tuple[Status, ...] = ("errored", "interrupted", "success")

# What a service keeps of a run, an adapter above all, it keeps to the end of the run's session.
# Half of the places that SkyRL has by default (32, docs/engines.md), for runs of the next session
# may be at work before all of this one are done.
MAX_RUNS = 16


@dataclass
class SharedSession:
    """A session and the runs that have come to it."""

    base_url: str | None
    api_key: str | None = field(repr=False)
    opening: asyncio.Task[Clients] = field(repr=False)
    num_runs: int = 0  # that have ever come
    num_at_work: int = 0
    status: Status = "success"  # the worst of those that have left

    @property
    def clients(self) -> Clients:
        """Its clients, once it is open."""
        return self.opening.result()

    def takes(self, base_url: str | None, api_key: str | None) -> bool:
        """Whether a run may come: as long as none has left, whose adapter would only lie there, or
        that may have failed because a service that was restarted knows the session no more."""
        is_same = (self.base_url, self.api_key) == (base_url, api_key)
        return is_same and self.num_at_work == self.num_runs < MAX_RUNS


class SharedClients:
    """The sessions that runs are at work in."""

    def __init__(self) -> None:
        self._open: list[SharedSession] = []

    async def take(
        self, base_url: str | None, api_key: str | None, held_up: HoldUps
    ) -> SharedSession:
        """An open session for one more run, which leaves it at its end; a new one where none takes
        it, which those that come meanwhile wait for as well. `held_up` is of all that are at work
        on the service.

        Raises what the SDK raises about a service that is not there.
        """
        session = next((one for one in self._open if one.takes(base_url, api_key)), None)
        if session is None:
            opening = aside(lambda: open_clients(base_url, api_key, held_up))
            session = SharedSession(base_url, api_key, asyncio.create_task(opening))
            self._open.append(session)
        session.num_runs += 1
        session.num_at_work += 1
        with contextlib.ExitStack() as undo:
            undo.callback(self.leave, session, "errored")
            await asyncio.shield(session.opening)  # one that is stopped stops no other
            undo.pop_all()
        return session

    def leave(self, session: SharedSession, status: Status) -> Status | None:
        """Note the end of a run. Where it was the last one in its session: the worst status of all
        of them, which the session is to be closed with."""
        if WORST_FIRST.index(status) < WORST_FIRST.index(session.status):
            session.status = status
        session.num_at_work -= 1
        if session.num_at_work > 0:
            return None
        self._open.remove(session)
        return session.status
