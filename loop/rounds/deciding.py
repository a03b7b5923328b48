"""Decide: from the results so far to the next action, recorded with its sentence."""

from __future__ import annotations

from ledger.records import Checkpoint
from loop.rounds.evaluating import evaluate
from loop.rounds.run import Run
from scores.decision import Decision, Spent, champion_of, decide
from scores.results import EvalResult


async def decide_and_record(
    run: Run, result: EvalResult, checkpoint: Checkpoint | None
) -> tuple[Decision, EvalResult]:
    """Decide; guards that were not due are measured before a round is stopped or gone back to."""
    store, gate = run.store, run.plan.gate
    step = 0 if checkpoint is None else checkpoint.step
    results = {one.round: one for one in store.results() if one.round <= result.round}
    guards = [task for task in run.plan.tasks if task.role == "guard"]
    while True:
        *earlier, result = results.values()
        if gate.patience is not None:
            run.champion = champion_of([*earlier, result], gate, run.champion)
        decision = decide(earlier, result, spent(run, step), gate, run.champion)
        best = decision.best_round if decision.stops else decision.goes_on_from
        if decision.action == "continue" or all(t.name in results[best].names for t in guards):
            break
        results[best] = await evaluate(run, best, store.checkpoint(best), guards)
        run.champion = None  # a guard that is known now may be broken
    assert decision.stops or store.test_opened() is None, "no training past the sealed test"
    recorded = store.decision(result.round)
    if recorded is not None and recorded.action == decision.action:
        return recorded, result
    store.record_decision(decision, step)
    return decision, result


def spent(run: Run, step: int) -> Spent:
    """What the run has used, and what its dearest round used, in the units of the budget."""
    rounds = [run.store.usage(number) for number in range(1, run.store.num_rounds + 1)]
    used = run.store.spent()  # what was paid for in vain is of no round
    return Spent(
        steps=step,
        tokens=used.tokens,
        minutes=used.minutes,
        usd=run.plan.cost_usd(used) or 0.0,
        round_tokens=max((one.tokens for one in rounds), default=0),
        round_minutes=max((one.minutes for one in rounds), default=0.0),
        round_usd=max((run.plan.cost_usd(one) or 0.0 for one in rounds), default=0.0),
    )
