"""One background task that sends a suite's rounds; nothing in the loop waits for it."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from evalops_client import EvalOpsClient, deliver
from loop.reports.console import command_for
from services.evalops_outbox import EvalOpsError, Outbox, OutboxRecord, RoundReport

PROGRAM = Path(__file__).resolve().parent.parent.parent / "evalops_client.py"
LEAVE_S = 0.5  # what a cancelled request gets to close its connection


@dataclass
class Deliverer:
    """Sends a suite's rounds in one background task that nothing in the loop waits for.

    A pass sends what is undelivered, in round order; every `put` begins one, and so does the end.
    What fails for now is left to the next pass, what is refused is not tried again by this object.
    Each outcome goes to `record`, a failed one to `warn` and another to `tell`; the same failure of
    a round is told once. An error in recording (a full disk: `StorageError`) ends the task;
    `finish` raises it.
    """

    client: EvalOpsClient
    outbox: Outbox
    suite_id: str
    _: KW_ONLY
    delivered: set[str]
    record: Callable[..., None]  # `RunStore.record_delivery`
    warn: Callable[[str], None]
    tell: Callable[[str], None] = lambda text: None  # of what is queued, and what was posted
    _refused: set[str] = field(default_factory=set, init=False)
    _told: set[str] = field(default_factory=set, init=False)
    _is_finishing: bool = field(default=False, init=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the task, in a running event loop, with what an earlier process left behind."""
        assert self._task is None, "started twice"
        self._wake.set()
        self._task = asyncio.create_task(self._work())

    def put(self, report: RoundReport) -> None:
        """Make a round durable and have it sent; returns at once. Raises as `Outbox.put`."""
        record = self.outbox.put(report, self.suite_id)
        if record.key not in self.delivered:
            self.tell(f"EvalOps: round {record.round} is queued")
        self._wake.set()

    async def finish(self, bound_s: float = 10.0) -> int:
        """Try a last time; return how many rounds are undelivered, after a warning about them.

        Takes at most `bound_s` seconds. Raises what ended the task, if `record` raised.
        """
        assert self._task is not None, "not started"
        self._is_finishing = True
        self._wake.set()
        leave_s = min(LEAVE_S, bound_s)
        await asyncio.wait({self._task}, timeout=bound_s - leave_s)
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=leave_s)
        ended, self._task = self._task, None
        if ended.done() and not ended.cancelled():
            ended.result()
        rounds = [str(record.round) for record in self._undelivered()]
        if rounds:
            folder = shlex.quote(str(self.outbox.folder.parent))
            command = f"{command_for(PROGRAM)} sync {folder}"
            self.warn(
                f"EvalOps: undelivered: round {', '.join(rounds)}, kept in "
                f"{self.outbox.folder}. Send with: {command}"
            )
        return len(rounds)

    def close(self) -> None:
        """Leave at once; what was being sent stays in the outbox. After `finish` it does nothing.

        What ended the task before is a warning here, for the run is ending for another reason.
        """
        ended, self._task = self._task, None
        if ended is None:
            return
        ended.cancel()
        if ended.done() and not ended.cancelled() and (error := ended.exception()) is not None:
            self.warn(f"EvalOps: deliveries could not be recorded: {error}")

    async def _work(self) -> None:
        is_last = False
        while not is_last:
            await self._wake.wait()
            self._wake.clear()
            is_last = self._is_finishing
            for record in self._undelivered():
                if record.key not in self._refused:
                    await self._deliver(record)

    def _undelivered(self) -> list[OutboxRecord]:
        records, warnings = self.outbox.records()
        for text in warnings:
            self._warn_once(text)
        mine = (record for record in records if record.suite_id == self.suite_id)
        return [record for record in mine if record.key not in self.delivered]

    async def _deliver(self, record: OutboxRecord) -> None:
        try:
            detail = await deliver(self.client, record)
        except EvalOpsError as error:
            if not error.is_temporary:
                self._refused.add(record.key)
            later = "is sent again later" if error.is_temporary else "stays in the outbox"
            if self._warn_once(f"{error} Round {record.round} {later}."):
                self.record(record.round, record.key, str(error), ok=False)
        else:
            self.record(record.round, record.key, detail, ok=True)
            self.delivered.add(record.key)
            told = (
                "" if detail is None else f": {detail}" if " " in detail else f": test run {detail}"
            )
            self.tell(f"EvalOps: round {record.round} was posted{told}")

    def _warn_once(self, text: str) -> bool:
        if text in self._told:
            return False
        self._told.add(text)
        self.warn(text)
        return True
