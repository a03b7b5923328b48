"""A ledger told to its trackers from the beginning, as far as they do not have it yet."""

from __future__ import annotations

from config_schema import TrainingConfig
from ledger.store import RunStore


def replay(store: RunStore, config: TrainingConfig) -> list[str]:
    """Bring the trackers of `tracking` up to what the ledger says; returns what is to be said."""
    raise NotImplementedError
