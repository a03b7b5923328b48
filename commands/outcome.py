"""How a run ended, on stdout, and what its exit code is."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from commands.boundary import Session, alert
from config_schema import TrainingConfig
from loop.reports.console import USUAL_WIDTH, say, tell, width_of
from scores.decision import EXTENDABLE

if TYPE_CHECKING:
    from ledger.store import RunStore
    from loop.reports.progress import Progress
    from scores.decision import Decision


OVER_LIMITS = "A limit of evalops_budget_file is violated by the best round."


class Ending(NamedTuple):
    """The settings of a run that has ended, and what it cost."""

    config: TrainingConfig
    cost_usd: float | None


def report_finished(
    args: argparse.Namespace,
    session: Session,
    store: RunStore,
    config: TrainingConfig,
    progress: Progress,
) -> int:
    """A run with nothing left to do: say so, how it can go on, and its outcome."""
    from loop.planning.plan import cost_usd
    from loop.run_page.page import PAGE, keep_page

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
        how = "to train on, resume it with a higher bound (max_rounds or budget)"
    progress.line(f"{store.run_dir}: this run is finished, nothing is left to do; {how}")
    # A version before may have ended it without, or a full disk.
    if not (store.run_dir / PAGE).is_file() and (problem := keep_page(store)) is not None:
        progress.line(problem)
    # The alert comes again: a kill at the very end may have kept it from being told.
    used_usd = cost_usd(config, store.spent())
    return report_end_and_alert(args, session, store, decision, Ending(config, used_usd))


def report_end_and_alert(
    args: argparse.Namespace,
    session: Session,
    store: RunStore,
    decision: Decision,
    ending: Ending,
) -> int:
    """Print the outcome of a run, and alert where it has not met its target; the exit code."""
    session.end_live_line()
    try:
        exit_code = report_end(args, store, decision, ending)
        if args.summary is not None or args.junit is not None:
            from commands.ci import summary_of_run, write_files
            from loop.planning.plan import gate_of

            name = ending.config.run_name
            summary = summary_of_run(store, decision, gate_of(ending.config), name)
            write_files(args, session.keys.redacted, summary)
        return exit_code
    finally:
        if decision.action != "stop_passed":
            alert(session, "target_missed", {"round": decision.round, "detail": decision.sentence})


def report_end(
    args: argparse.Namespace, store: RunStore, decision: Decision, ending: Ending
) -> int:
    """Print the outcome to stdout; returns the exit code."""
    from loop.planning.plan import gate_of
    from loop.reports.what_next import what_next

    config = ending.config
    steps = what_next(store, gate_of(config), config.model_dump(mode="json"), decision)
    if args.json:
        say(json.dumps(_outcome(store, decision, ending, steps), indent=1))
    else:
        _tell_outcome(store, decision, config, steps)
    is_within_limits = store.is_within_limits(decision.best_round)
    return 3 if args.gate and not (decision.action == "stop_passed" and is_within_limits) else 0


def _is_sealed(store: RunStore) -> bool:
    """Whether there is a sealed test that nobody has opened."""
    has_test = bool(store.settled_config()["config"]["evaluation"].get("test_tasks"))
    return has_test and store.test_opened() is None


def _page(store: RunStore) -> Path | None:
    from loop.run_page.page import PAGE

    page = store.run_dir / PAGE
    return page if page.is_file() else None


def _outcome(
    store: RunStore, decision: Decision, ending: Ending, steps: list[str]
) -> dict[str, Any]:
    """The outcome for programs."""
    baseline, test = store.result(0), store.test_result()
    checkpoint, page = store.checkpoint(decision.best_round), _page(store)
    assert baseline is not None and checkpoint is not None
    return {
        "action": decision.action,
        "sentence": decision.sentence,
        "scores": {str(number): score for number, score in store.scores().items()},
        "best_round": decision.best_round,
        "best_sampler_path": checkpoint.sampler_path,
        "best_state_path": checkpoint.state_path,
        "baseline": baseline.score,
        "test_score": None if test is None else test.score,
        "test_stayed_sealed": _is_sealed(store),
        "within_limits": store.is_within_limits(decision.best_round),
        "tokens": store.usage()._asdict(),
        "tokens_in_vain": store.in_vain()._asdict(),
        "cost_usd": ending.cost_usd,
        "next_steps": steps,
        "run_dir": str(store.run_dir),
        "page": None if page is None else str(page),
    }


def _tell_outcome(
    store: RunStore, decision: Decision, config: TrainingConfig, steps: list[str]
) -> None:
    """The outcome for people: the rounds as a table, the verdict, where everything is."""
    from loop.reports.rounds_table import rounds_of, rounds_table
    from loop.reports.run_report import stayed_sealed
    from scores.wording import score_and_n

    best, baseline, test = store.result(decision.best_round), store.result(0), store.test_result()
    checkpoint, page = store.checkpoint(decision.best_round), _page(store)
    assert best is not None and baseline is not None and checkpoint is not None
    say("\n".join(rounds_table(rounds_of(store), width_of(sys.stdout) or USUAL_WIDTH)))
    tell(decision.sentence)
    if not store.is_within_limits(decision.best_round):
        tell(OVER_LIMITS)
    tell(
        f"Best checkpoint: round {decision.best_round}, score {score_and_n(best)}, "
        f"baseline {baseline.score:.4f}"
    )
    if max(score for number, score in store.scores().items() if number > 0) <= baseline.score:
        tell(f"No round scored above {store.baseline_name}.")
    if test is not None:
        tell(f"Sealed test: score {score_and_n(test)}")
    elif _is_sealed(store):
        tell(f"{stayed_sealed(config.evaluation.test_on)}.")
    tell(f"  {checkpoint.sampler_path}")
    tell(f"Report: {store.run_dir / 'eval_report.md'}")
    if page is not None:
        tell(f"Page: {page}")
    tell(f"Run directory: {store.run_dir}")
    if steps:
        say("What to try next:")
        for step in steps:
            tell(f"  - {step}")
