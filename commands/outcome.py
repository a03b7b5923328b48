"""How a run ended, on stdout, and what its exit code is."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from commands.boundary import Session, alert
from config_schema import TrainingConfig
from loop.reports.console import resume_command, say
from scores.decision import EXTENDABLE

if TYPE_CHECKING:
    from ledger.store import RunStore
    from loop.reports.progress import Progress
    from scores.decision import Decision


def report_finished(
    args: argparse.Namespace,
    session: Session,
    store: RunStore,
    config: TrainingConfig,
    progress: Progress,
) -> int:
    """A run with nothing left to do: say so, how it can go on, and its outcome."""
    from loop.planning.plan import cost_usd

    decision = store.last_decision()
    assert decision is not None, "a finished run has a decision"
    how = "a run that met its target ends there"
    if store.test_opened() is not None:
        how = (
            "its sealed test was opened, so it is not trained further; to train on from its "
            f"weights, start a new run with start_from: {store.run_dir}@best and a test_tasks that "
            "nobody has looked at"
        )
    elif decision.action in EXTENDABLE:
        command = f"{resume_command(store.run_dir)} --set max_rounds={config.max_rounds + 1}"
        how = f"to train on, raise a bound: {command}"
    progress.line(f"{store.run_dir}: this run is finished, nothing is left to do; {how}")
    # The alert comes again: a kill at the very end may have kept it from being told.
    used_usd = cost_usd(config, store.usage())
    return report_end_and_alert(args, session, store, decision, used_usd)


def report_end_and_alert(
    args: argparse.Namespace,
    session: Session,
    store: RunStore,
    decision: Decision,
    cost_usd: float | None,
) -> int:
    """Print the outcome of a run, and alert where it has not met its target; the exit code."""
    try:
        return report_end(args, store, decision, cost_usd)
    finally:
        if decision.action != "stop_passed":
            alert(session, "target_missed", {"round": decision.round, "detail": decision.sentence})


def report_end(
    args: argparse.Namespace, store: RunStore, decision: Decision, cost_usd: float | None
) -> int:
    """Print the outcome to stdout; returns the exit code."""
    from loop.reports.run_report import STAYED_SEALED
    from scores.wording import score_and_n

    best, baseline, test = store.result(decision.best_round), store.result(0), store.test_result()
    checkpoint = store.checkpoint(decision.best_round)
    assert best is not None and baseline is not None and checkpoint is not None
    has_test = bool(store.settled_config()["config"]["evaluation"].get("test_tasks"))
    is_sealed = has_test and store.test_opened() is None
    if args.json:
        outcome = {
            "action": decision.action,
            "sentence": decision.sentence,
            "scores": {str(number): score for number, score in store.scores().items()},
            "best_round": decision.best_round,
            "best_sampler_path": checkpoint.sampler_path,
            "best_state_path": checkpoint.state_path,
            "baseline": baseline.score,
            "test_score": None if test is None else test.score,
            "test_stayed_sealed": is_sealed,
            "tokens": store.usage()._asdict(),
            "cost_usd": cost_usd,
            "run_dir": str(store.run_dir),
        }
        say(json.dumps(outcome, indent=1))
    else:
        say(decision.sentence)
        say(
            f"Best checkpoint: round {decision.best_round}, score {score_and_n(best)}, "
            f"baseline {baseline.score:.4f}"
        )
        if best.score <= baseline.score:
            say(f"No round scored above {store.baseline_name}.")
        if test is not None:
            say(f"Sealed test: score {score_and_n(test)}")
        elif is_sealed:
            say(f"{STAYED_SEALED}.")
        say(f"  {checkpoint.sampler_path}")
        say(f"Report: {store.run_dir / 'eval_report.md'}")
        say(f"Run directory: {store.run_dir}")
    verdict = store.limits_verdict(decision.best_round)
    is_within_limits = verdict is None or not verdict["fails"]
    return 3 if args.gate and not (decision.action == "stop_passed" and is_within_limits) else 0
