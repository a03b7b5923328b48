"""What to try after a run that missed its target, as its directory has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ledger.store import RunStore
from loop.reports.console import resume_command
from scores.decision import Decision, Gate
from scores.diagnosis import KINDS, first_quarter, last_quarter
from scores.measures import SFT, method_words
from scores.next_steps import Missed, Trained, WaysOn, next_steps


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
        trained=trained_in(store, decision.round, config),
        max_tokens=config["evaluation"]["max_tokens"],
        method=method_words(config),
        went_on_from=store.lineage(decision.round)[-1],
        has_unused_pool=_has_unused_pool(store, config, decision.round),
    )
    ways = WaysOn(
        # After the sealed test a run is not trained further.
        command=resume_command(store.run_dir) if store.test_opened() is None else None,
        start_from=json.dumps(f"{store.run_dir}@best") if "start_from" in config else None,
    )
    return next_steps(missed, ways)


def _has_unused_pool(store: RunStore, config: Mapping[str, Any], last_round: int) -> bool:
    """Whether a run that went on from a checkpoint has a pool that no round drew from.

    Such a pool is what came back of that checkpoint. Of a run that began with the untouched model
    it may well not be needed.
    """
    if config["mining"]["pool_file"] is None or store.origin is None or last_round < 1:
        return False
    selections = (store.selection(round_no) for round_no in range(1, last_round + 1))
    picks = (pick for one in selections if one is not None for pick in one.picks)
    return not any(pick.source == "pool" for pick in picks)


def trained_in(store: RunStore, round_no: int, config: Mapping[str, Any]) -> Trained:
    """What training came to. With a pool a round begins with rows that are new to the model, and
    without one all of them may come again, so that the one's start tells of the next, or its end.
    """
    steps, losses = list(store.events("step", round_no)), store.losses(round_no)
    num_rows = sum(len(step.get("example_ids", ())) for step in steps)  # older runs name none
    num_tokens = sum(step.get("num_loss_tokens", 0) for step in steps)
    has_pool = config["mining"]["pool_file"] is not None
    if method_words(config) is not SFT:  # what is unlikely to it is not what it has yet to learn
        losses, num_tokens = [], 0
    return Trained(
        learning_rate=store.last_lr(round_no) or config["learning_rate"],
        num_steps=steps[-1]["step"] + 1 if steps else 0,
        last_loss=(first_quarter if has_pool else last_quarter)(losses) if losses else None,
        answer_tokens=num_tokens / num_rows if num_tokens and num_rows else None,
    )
