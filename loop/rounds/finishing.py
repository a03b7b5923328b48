"""The end of a run: what the chosen checkpoint still lacks, the sealed test, and the report."""

from __future__ import annotations

from errors import RunStoreError
from evaluation.measuring import measure
from evaluation.tasks import protocol_of
from ledger.records import Checkpoint
from loop.reports.run_report import stayed_sealed, write_report
from loop.rounds.evaluating import evaluate, measuring, weights_asked
from loop.rounds.run import Run
from scores.decision import Decision
from scores.results import eval_result, protocol_hash


async def complete_evidence(run: Run, decision: Decision) -> None:
    """At the end: what the chosen checkpoint still lacks, the sealed test, and the report."""
    plan, store = run.plan, run.store
    checkpoint = store.checkpoint(decision.best_round)
    assert checkpoint is not None, "a run stops after a trained round"
    try:
        before = store.measured(decision.best_round).names
        result = await evaluate(run, decision.best_round, checkpoint, list(plan.tasks))
        run.progress.task_lines(result, result.names - before)
        if plan.test_tasks and store.test_result() is None:
            test_on = plan.config.evaluation.test_on
            if opens_test(test_on, decision):
                await ask_sealed_test(run, checkpoint)
            else:
                run.progress.line(stayed_sealed(test_on))
        run.progress.live("writing the report")
    finally:  # there is a report, also where an evaluation failed
        config, cost_usd = plan.config.model_dump(mode="json"), plan.cost_usd(store.spent())
        write_report(store, plan.gate, config, decision, cost_usd)


async def ask_test_of_winner(run: Run, round_no: int) -> None:
    """Open the sealed test of a finished run on one of its rounds, which a study has chosen among
    its runs, and write the report with it."""
    plan, store = run.plan, run.store
    checkpoint, decision = store.checkpoint(round_no), store.last_decision()
    assert checkpoint is not None and decision is not None, "a finished run has both"
    if store.test_result() is None:
        await ask_sealed_test(run, checkpoint)
    config, cost_usd = plan.config.model_dump(mode="json"), plan.cost_usd(store.spent())
    write_report(store, plan.gate, config, decision, cost_usd)
    run.is_closing = True
    store.append("run_finished", round=decision.round, action=decision.action)
    run.show_page()


def opens_test(test_on: str, decision: Decision) -> bool:
    """Whether a run that stops so opens its sealed test; for a study's winner the study does."""
    return test_on == "end" or (test_on == "pass" and decision.action == "stop_passed")


async def ask_sealed_test(run: Run, checkpoint: Checkpoint) -> None:
    """Open the sealed test on a checkpoint, or finish one that was opened on it."""
    plan, store, round_no, path = run.plan, run.store, checkpoint.round, checkpoint.sampler_path
    settings = plan.sampling, plan.renderer_name, plan.config.evaluation.grader_model
    protocol = protocol_of(plan.test_tasks, *settings)
    opened = store.test_opened()
    if opened is None:
        store.record_test_opened(round_no, path, protocol_hash(protocol))
    elif opened["checkpoint"] != path:
        raise RunStoreError(
            f"{store.run_dir}: the sealed test was opened on {opened['checkpoint']} and is not "
            f"asked of {path} as well. Start a new run with a new test."
        )
    missing = [t for t in plan.test_tasks if t.name not in store.test_measured().names]
    total = sum(task.num_requests(plan.sampling.num_repeats) for task in missing)
    journal = store.test_journal(path)
    place = await measuring(run, round_no, "sealed test", path, total - len(journal))
    weights = await weights_asked(run, path)
    async for new in measure(missing, place, journal):
        store.record_test_measured(round_no, new, checkpoint.step, weights)
    run.waits.record(round_no)
    journal.discard()
    result = eval_result(round_no, path, store.test_measured(), protocol)
    store.record_test(result, checkpoint.step)
