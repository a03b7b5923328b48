"""Rounds on their way to EvalOps, beside the loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from config_schema import TrainingConfig
from errors import ConfigError
from evalops_client import EvalOpsClient, make_client
from ledger.records import Checkpoint
from ledger.run_directory import OUTBOX
from loop.rounds.deliverer import Deliverer
from loop.rounds.run import Run
from scores.decision import Decision
from scores.results import EvalResult
from services.evalops_outbox import EvalOpsError, Outbox, RoundReport
from services.keys import Keys


def send_to_evalops(
    run: Run, result: EvalResult, decision: Decision, checkpoint: Checkpoint | None
) -> None:
    """Put a round into the outbox, from where it is sent while the loop goes on."""
    config, store = run.plan.config, run.store
    if run.evalops is None:
        return
    report = RoundReport(
        run_name=config.run_name,
        run_id=store.run_id,
        config_hash=run.plan.config_hash,
        round=result.round,
        checkpoint=result.checkpoint,
        base_model=config.base_model,
        score=result.score,
        stderr=result.stderr,
        n=result.n,
        threshold=config.eval_threshold,
        learning_rate=store.last_lr(result.round),
        step=0 if checkpoint is None else checkpoint.step,
        tasks=tuple((task.name, task.score, task.n) for task in result.tasks),
        passed=decision.action == "stop_passed",
        decision=decision.sentence,
    )
    try:
        run.evalops.put(report)
    except EvalOpsError as error:
        run.progress.line(f"warning: {error}")


def open_evalops(config: TrainingConfig, keys: Keys) -> EvalOpsClient | None:
    """The EvalOps client where it is enabled. Raises `ConfigError` when its key is missing."""
    if not config.evalops_enabled:
        return None
    if not keys.evalops:
        raise ConfigError(
            "evalops_enabled is true but EVALOPS_API_KEY is not set. Export your EvalOps key, or "
            "set evalops_enabled to false."
        )
    return make_client(keys.evalops, config.evalops_api_url)


@contextlib.contextmanager
def sending(run: Run, evalops: EvalOpsClient | None) -> Iterator[None]:
    """Send rounds to EvalOps beside the loop, where that is enabled."""
    if evalops is None:
        yield
        return
    suite_id = run.plan.config.evalops_test_suite_id
    assert suite_id is not None, "the schema asks for it"
    run.evalops = Deliverer(
        evalops,
        Outbox(run.store.run_dir / OUTBOX, run.store.run_id),
        suite_id,
        delivered=run.store.delivered_keys(),
        record=run.store.record_delivery,
        warn=lambda text: run.progress.line(f"warning: {text}"),
        tell=run.progress.line,
    )
    run.evalops.start()
    try:
        yield
    finally:
        run.evalops.close()
