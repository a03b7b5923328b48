"""A run as its page sees it: its directory, and what its settings come to."""

from __future__ import annotations

from typing import Any, NamedTuple

from config_schema import TrainingConfig
from ledger.store import RunStore
from loop.planning.plan import cost_usd, gate_of
from scores.decision import Gate


class Viewed(NamedTuple):
    """A run directory with the gate and the cost that its settings give; all is read from it."""

    store: RunStore
    config: dict[str, Any]
    gate: Gate
    cost_usd: float | None  # None without a price table


def viewed(store: RunStore) -> Viewed:
    """Read a run, also one that goes on. Raises `RunStoreError`."""
    config = store.settled_config()["config"]
    settings = TrainingConfig.model_validate(config)
    return Viewed(store, config, gate_of(settings), cost_usd(settings, store.usage()))
