"""A run as its page sees it: its directory, and what its settings come to."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import config_schema
from config_schema import TrainingConfig
from ledger.records import Usage
from ledger.run_directory import is_locked
from ledger.store import RunStore
from loop.planning.plan import cost_usd, gate_of
from scores.decision import Gate

Kind = Literal["going_on", "left", "interrupted", "failed", "eval_failed", "finished"]
ENDED: dict[str, Kind] = {
    "interrupted": "interrupted",
    "failed": "failed",
    "eval_failed": "eval_failed",
    "run_finished": "finished",
}


class Standing(NamedTuple):
    """Where a run stands: `left` is one that nobody is at work on and that has not said why."""

    kind: Kind
    detail: str  # why it failed; empty where there is nothing to say
    time: str  # of the last event, UTC; empty of a run that was not begun


class Viewed(NamedTuple):
    """A run directory with the gate and the cost that its settings give; all is read from it."""

    store: RunStore
    config: dict[str, Any]  # with the defaults of this version
    gate: Gate
    cost_usd: float | None  # None without a price table
    settings: TrainingConfig
    standing: Standing

    def cost_of(self, usage: Usage) -> float | None:
        return cost_usd(self.settings, usage)


def viewed(store: RunStore) -> Viewed:
    """Read a run, also one that goes on.

    Raises `RunStoreError`, and `ConfigError` for settings that this version does not know.
    """
    settings = config_schema.validate(store.settled_config()["config"], str(store.run_dir))
    config = settings.model_dump(mode="json")
    cost = cost_usd(settings, store.spent())
    return Viewed(store, config, gate_of(settings), cost, settings, standing_of(store))


def is_on_this_machine(store: RunStore) -> bool:
    """Whether the embedded service trained and asked, so that nobody was paid for it."""
    return store.settled_config()["resolved"].get("service") == "embedded"


def standing_of(store: RunStore) -> Standing:
    """Where a run stands, as its last event and its lock have it."""
    event = store.newest_event
    if event is None:
        return Standing("going_on" if is_locked(store.run_dir) else "left", "", "")
    if (kind := ENDED.get(event["type"])) is not None:
        return Standing(kind, str(event.get("detail", "")), event["time"])
    return Standing("going_on" if is_locked(store.run_dir) else "left", "", event["time"])
