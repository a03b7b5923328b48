"""What several runs share: measurements that one of them has paid for, clients, turns, signals.

The same questions, asked of the same weights in the same way, have the same answers; so what a run
directory holds of weights that another run is to measure is taken from there. Inspect evaluates for
one run of a process at a time. Sessions on a service, and what is in flight there, are shared by
runs that are at work at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.tasks import EvalTask
from ledger.run_directory import EVALUATED
from ledger.store import RunStore
from loop.rounds.depth import Depth
from scores.results import EvalResult
from services.shared_clients import SharedClients

OF_HELD_OUT = ("max_seq_length", "data")  # settings that change what of its rows is measured


class Paid(NamedTuple):
    """Where a measurement lies: a task of a round, or of the checkpoint at that place."""

    run_dir: Path
    number: int
    task: str


class Sharing:
    """What is known of other runs' measurements, by the weights and all that changes a score; and
    what they hold of the services together."""

    def __init__(self, most_answers: int | None = None) -> None:
        """With `most_answers`, so many are asked for at once, however many runs ask; without, it is
        each run's `evaluation.concurrency` alone that bounds them."""
        self.clients = SharedClients()
        self.answer_turns = None if most_answers is None else asyncio.Semaphore(most_answers)
        self.training: list[Depth] = []  # of the runs that train now
        self.inspect_turn = asyncio.Lock()
        self.is_stopping = False  # one of them was asked to stop, and so all of them are
        self._paid: dict[str, Paid] = {}
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def offer(self, store: RunStore, result: EvalResult) -> None:
        """Let other runs take what this one has measured; the first one that offers it counts."""
        weights, asked = weights_measured(store, result.round), result.protocol.get("tasks", {})
        for name in result.names & asked.keys():
            key = _key(store, weights, name, result.protocol)
            self._paid.setdefault(key, Paid(store.run_dir, result.round, name))

    def paid_for(
        self, store: RunStore, number: int, tasks: Iterable[EvalTask], protocol: Mapping[str, Any]
    ) -> list[tuple[EvalTask, Paid]]:
        """Of the tasks, those that another run has measured of the same weights, and where."""
        weights = weights_measured(store, number)
        found = []
        for task in tasks:
            paid = self._paid.get(_key(store, weights, task.name, protocol))
            if paid is not None and paid.run_dir != store.run_dir:
                found.append((task, paid))
        return found

    @contextlib.asynccontextmanager
    async def turn_on(self, store: RunStore, number: int) -> AsyncIterator[None]:
        """Wait for whoever measures the same weights, so that they are measured once."""
        async with self._turns[weights_measured(store, number)]:
            yield

    def is_busy_with(self, store: RunStore, number: int) -> bool:
        return self._turns[weights_measured(store, number)].locked()


def weights_measured(store: RunStore, number: int) -> str:
    """A name of the weights of a round, or of the checkpoint at that place of an evaluation, that
    two run directories share exactly where they measure the same ones."""
    if store.is_evaluation:
        subject = store.settled_config()[EVALUATED][number]
        if subject["path"] is None:
            return _base_model(store)
        return f"run {subject.get('run_id')}: {subject.get('weights') or subject['path']}"
    if number == 0 and store.origin is None:
        return _base_model(store)
    if number == 0 and store.origin is not None:
        parent = store.origin.parent
        return f"state of run {parent.run_id}: {parent.state_path}"
    checkpoint = store.checkpoint(number)
    assert checkpoint is not None, "a round is saved before it is measured"
    return f"run {store.run_id}: {store.weights_of(checkpoint.sampler_path)}"


def _base_model(store: RunStore) -> str:
    """The sha256 of the base model's files, or its name where they are not here, and of which
    service: an engine may serve another model under a name."""
    model, settled = store.manifest().base_model, store.settled_config()
    if model is not None and model.files:
        return f"files {json.dumps(model.files, sort_keys=True)}"
    place = settled["resolved"].get("base_url") or settled["resolved"]["service"]
    if place == "compatible":  # recorded before its address was
        return f"of run {store.run_id}"
    return f"{settled['config']['base_model']} on {place}"


def _key(store: RunStore, weights: str, task: str, protocol: Mapping[str, Any]) -> str:
    """A short name of weights and of all that changes a task's score on them."""
    asked = {key: value for key, value in protocol.items() if key != "tasks"}
    if asked.get("temperature") == 0:
        asked.pop("seed", None)  # the likeliest token is the same for every seed
    asked["sha256"] = protocol["tasks"][task]["sha256"]
    if asked.get("grader_model") is not None:  # which is not known by its files
        asked["folder"] = str(Path(store.settled_config()["config_file"]).parent)
    if task.startswith(("nll:", "pref:")):
        config = store.settled_config()["config"]
        asked |= {key: config.get(key) for key in OF_HELD_OUT}
        if config.get("method") == "dpo":  # where last answers alone are looked at
            asked["method"] = "dpo"
    told = json.dumps([weights, asked], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()
