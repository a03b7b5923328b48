"""The samples that wait for a wave, and whose rows the next wave takes.

Clients take turns row by row, so that a long queue of one holds no other up; that is free, since
no bit of a sample depends on its company. Waiting is all that is known here: what is in a wave,
and what becomes of it, is the worker's.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from local_tinker.engine import Engine
from local_tinker.sample_requests import SampleRequest, WaveKey
from local_tinker.sample_rows import Row

QUEUE_BEHIND_S = 1.0  # how long samples wait for a wave of their own kind to end

Result = bytes | dict  # protobuf or JSON, as the protocol says for each kind of request


class Client(NamedTuple):
    """One process that asks: the clones of a sampling client share a session between processes."""

    session_id: str
    clone_id: int = 0  # 0 is the process that opened the session


ANYONE = Client("")  # a caller within the process, which cannot go away


class Kind(NamedTuple):
    """What samples must share to be computed in one wave, the model included."""

    engine_id: int
    key: WaveKey


@dataclass(eq=False)
class PendingSample:
    """A sample request that has no answer yet."""

    client: Client
    engine: Engine
    request: SampleRequest
    arrived_at: float
    future: Future[Result] = field(default_factory=Future)
    is_wanted: bool = True  # False: its client is away, or it has been dropped
    rows: list[Row] = field(init=False)
    waiting: deque[int] = field(init=False)  # which rows are in no wave yet

    def __post_init__(self) -> None:
        self.rows = [Row(self.request, index) for index in range(self.request.num_samples)]
        self.waiting = deque(range(len(self.rows)))

    @property
    def kind(self) -> Kind:
        return Kind(id(self.engine), self.request.wave_key)

    def end_rows(self) -> None:
        """End the rows that are in a wave; new ones, with the same bits to come, wait instead."""
        for index, row in enumerate(self.rows):
            if not row.is_done and index not in self.waiting:
                row.stop_reason = "dropped"
                self.rows[index] = Row(self.request, index)
                self.waiting.append(index)


@dataclass
class _Kin:
    """The waiting samples of one kind, in the order of the clients' turns, each client's in its own
    order."""

    num_slots: int
    num_rows: int = 0
    turns: OrderedDict[Client, OrderedDict[Future[Result], PendingSample]] = field(
        default_factory=OrderedDict
    )

    @property
    def oldest_at(self) -> float:
        return min(next(iter(line.values())).arrived_at for line in self.turns.values())


class SampleQueue:
    """Samples with rows that are in no wave yet. The worker's lock guards it."""

    def __init__(self) -> None:
        self._kinds: dict[Kind, _Kin] = {}

    def __bool__(self) -> bool:
        return bool(self._kinds)

    @property
    def fills_a_wave(self) -> bool:
        return any(kin.num_rows >= kin.num_slots for kin in self._kinds.values())

    def add(self, pending: PendingSample) -> None:
        kind = pending.kind
        if kind not in self._kinds:
            self._kinds[kind] = _Kin(kind.key.num_slots(pending.engine))
        kin = self._kinds[kind]
        kin.turns.setdefault(pending.client, OrderedDict())[pending.future] = pending
        kin.num_rows += len(pending.waiting)

    def remove(self, pending: PendingSample) -> None:
        """Forget a sample; one that does not wait is no error."""
        kind = pending.kind
        kin = self._kinds.get(kind)
        if kin is None or pending.future not in kin.turns.get(pending.client, ()):
            return
        del kin.turns[pending.client][pending.future]
        kin.num_rows -= len(pending.waiting)
        if not kin.turns[pending.client]:
            del kin.turns[pending.client]
        if not kin.turns:
            del self._kinds[kind]

    def take(self, kind: Kind) -> dict[PendingSample, list[Row]]:
        """Take rows out, at most as many as a wave has slots, one from each client in turn."""
        kin = self._kinds[kind]
        taken: dict[PendingSample, list[Row]] = {}
        for _ in range(min(kin.num_rows, kin.num_slots)):
            client, line = kin.turns.popitem(last=False)
            pending = next(iter(line.values()))
            taken.setdefault(pending, []).append(pending.rows[pending.waiting.popleft()])
            kin.num_rows -= 1
            if not pending.waiting:
                line.popitem(last=False)
            if line:
                kin.turns[client] = line  # at the end
        if not kin.turns:
            del self._kinds[kind]
        return taken

    def next_kind(
        self, live: Collection[Kind], in_flight: Counter[Client], num_places: int, now: float
    ) -> Kind | None:
        """The kind that gets the next wave, of those that may have one now.

        Served first is who has the fewest samples in flight, then who has waited longest. The last
        place for a wave is kept for a client that has none. A kind that has a wave waits for its
        end, so that its samples share the next one; not for longer than `QUEUE_BEHIND_S`, so that a
        long answer does not block short ones, and not where a client that has nothing in flight
        would go into a full wave.
        """
        best: tuple[int, float, Kind] | None = None
        for kind, kin in self._kinds.items():
            fewest = min(in_flight[client] for client in kin.turns)
            may_join = fewest == 0 and kin.num_rows >= kin.num_slots
            has_waited = now - kin.oldest_at > QUEUE_BEHIND_S
            if (kind in live and not has_waited and not may_join) or (num_places == 1 and fewest):
                continue
            if best is None or (fewest, kin.oldest_at) < best[:2]:
                best = fewest, kin.oldest_at, kind
        return None if best is None else best[2]
