"""Where a resumed run takes up: what of it is kept, what is done again, and what comes next.

Read from the ledger as it stands after the resumption is marked, before anything is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evaluation.tasks import EvalTask
from ledger.store import RunStore
from loop.reports.lines import in_vain_text
from scores.decision import EXTENDABLE


def describe_taking_up(
    store: RunStore, num_steps_before: int, tasks: Sequence[EvalTask]
) -> Iterator[str]:
    """Yield the lines; `num_steps_before` were recorded before the resumption was marked."""
    decided = [event["round"] for event in store.events("decided")]
    round_no = max(decided) + 1 if decided else 0
    last = store.last_decision()
    if last is not None and last.stops:
        round_no -= 1
    yield f"resuming {store.run_dir} in round {round_no}: {_next(store, round_no, tasks)}"
    kept = _kept(store, round_no)
    gone = num_steps_before - sum(1 for _ in store.events("step"))
    lost = f"; {gone} step{'s' * (gone != 1)} after that do not count any more" if gone > 0 else ""
    yield f"  kept: {kept}{lost}"
    again = store.spent_again()
    if again.tokens:
        yield (
            f"  on top of what is planned, at the most: {again.train_tokens:,} trained, "
            f"{again.prompt_tokens:,} prompt and {again.sampled_tokens:,} sampled tokens of what "
            "does not count any more"
        )
    lost = store.in_vain()
    if lost.tokens:
        yield (
            f"  {in_vain_text(*lost[:3])}, as a process or a request ended before; answers among "
            "them that were kept are used, and recorded with their step"
        )


def _kept(store: RunStore, round_no: int) -> str:
    num_steps = store.steps_taken()
    parts = ["nothing yet"] if round_no == 0 else ["the baseline"]
    if store.num_rounds:
        parts.append("round 1" if store.num_rounds == 1 else f"rounds 1 to {store.num_rounds}")
    if num_steps:
        parts.append(f"the weights after {num_steps} steps")
    path = None if (saved := store.checkpoint(round_no)) is None else saved.sampler_path
    journal = store.eval_journal(round_no, path)
    if len(journal) and store.decision(round_no) is None:
        parts = [*(part for part in parts if part != "nothing yet"), f"{len(journal)} answers"]
    return ", ".join(parts)


def _next(store: RunStore, round_no: int, tasks: Sequence[EvalTask]) -> str:
    """What is done first."""
    decision, saved = store.decision(round_no), store.checkpoint(round_no)
    if decision is not None and decision.stops:
        if decision.action in EXTENDABLE:
            return "it is decided again, by the bounds as they are now"
        return "its end is written"
    if round_no and store.selection(round_no) is None:
        return "what it trains on is chosen"
    if round_no and saved is None:
        first = 0 if (before := store.checkpoint(round_no - 1)) is None else before.step
        start = max(first, store.steps_taken())
        return f"it trains on from step {start} (its steps begin with {first})"
    known = store.measured(round_no).names
    due = [task.name for task in tasks if task.is_due(round_no)]
    if missing := [name for name in due if name not in known]:
        what = "the untouched model is" if round_no == 0 else "its weights are"
        return f"{what} measured on {', '.join(missing)}"
    return "it is decided"
