"""What to try after a run that missed its target, as its directory has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ledger.store import RunStore
from loop.reports.console import resume_command
from scores.decision import Decision, Gate
from scores.diagnosis import KINDS
from scores.next_steps import Missed, WaysOn, next_steps


def what_next(
    store: RunStore, gate: Gate, config: Mapping[str, Any], decision: Decision
) -> list[str]:
    """Sentences; none for a run that met its target."""
    diagnosed = list(store.events("diagnosed", decision.round))
    known = diagnosed[-1].get("kinds") if diagnosed else None  # runs of versions before have none
    missed = Missed(
        decision=decision,
        gate=gate,
        results=[one for one in store.results() if one.round <= decision.round],
        kinds=[kind for kind in KINDS if isinstance(known, list) and kind in known],
        topics=store.topics(decision.best_round) or [],
        learning_rate=store.last_lr(decision.round) or config["learning_rate"],
        max_tokens=config["evaluation"]["max_tokens"],
    )
    ways = WaysOn(
        # After the sealed test a run is not trained further.
        command=resume_command(store.run_dir) if store.test_opened() is None else None,
        start_from=json.dumps(f"{store.run_dir}@best") if "start_from" in config else None,
    )
    return next_steps(missed, ways)
