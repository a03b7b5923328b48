"""Checkpoints evaluated outside a run: which ones are meant, and how they compare.

A checkpoint is named `RUN_DIR` or `RUN_DIR@best` (what the run recommends), `RUN_DIR@round_02`
(`round_00` is the untouched model), or `tinker://...` (sampler weights). Of several the first is
the reference that the others are paired with, question by question. One alone is held against its
own evaluation in the run, where that had the same protocol. Nothing here samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from config_schema import TrainingConfig
from ledger.references import Subject
from ledger.store import RunStore
from pages.markdown import at_start, inline, row
from scores.decision import Gate, judge
from scores.results import (
    LEVEL,
    EvalResult,
    GateChange,
    ScoreDifference,
    gate_change,
    score_difference,
    task_difference,
)
from scores.wording import (
    ROLE_NAMES,
    interval_text,
    loss_text,
    p_value_text,
    score_and_n,
    score_text,
    signed_text,
)

# --- which ones -----------------------------------------------------------------------------------


# --- how they compare -----------------------------------------------------------------------------


class Comparison(NamedTuple):
    """One checkpoint beside the reference; `passed` is None for the reference itself, whose verdict
    is said and judges nothing."""

    label: str
    result: EvalResult
    against: str | None
    difference: ScoreDifference | None
    passed: bool | None
    verdict: str  # a sentence without its full stop
    note: str = ""
    before: EvalResult | None = None  # what `against` names

    @property
    def sentence(self) -> str:
        return f"{self.verdict}.{self.note}"


def compare(
    subjects: Sequence[Subject], results: Sequence[EvalResult], gate: Gate
) -> list[Comparison]:
    """Judge each checkpoint by the gate; `gate.max_rounds` is the number that are judged.

    Whatever the rule, a checkpoint does not pass that is worse than the reference beyond noise.
    """
    reference, against, first_judged = results[0], subjects[0].label, 1
    guarded_by: EvalResult | None = reference  # what guards may not fall below
    if len(results) == 1:
        recorded, guarded_by, first_judged = subjects[0].recorded, subjects[0].baseline, 0
        against = None
        if recorded is not None and _is_comparable(recorded, reference):
            against, reference = "its evaluation in the run", recorded
        if guarded_by is not None and not _has_guards_of(guarded_by, results[0], gate):
            guarded_by = None
    comparisons = []
    for position, (subject, result) in enumerate(zip(subjects, results, strict=True)):
        if position < first_judged:
            said = _of_reference(subject, result, gate)
            comparisons.append(Comparison(subject.label, result, None, None, None, said))
            continue
        verdict = judge(result, guarded_by or reference, gate)
        why_not = None if verdict.passed else verdict.objection or verdict.numbers
        note = ""
        if against is None and subject.recorded is not None:
            note = (
                " It is not compared with its evaluation in the run, which had another protocol "
                "(questions, arguments, code, graders, sampling or seed)."
            )
        if why_not is None and against is not None:
            why_not = _worse(gate_change(result, reference, gate.level), against, verdict.numbers)
        if why_not is None and guarded_by is None and gate.guards:
            why_not = (
                f"{verdict.numbers}, but there is nothing that guard {next(iter(gate.guards))} "
                "could be compared with; name a reference first, for example RUN_DIR@round_00"
            )
        difference = None
        said = (
            f"{subject.label} passes: {verdict.numbers}"
            if why_not is None
            else f"{subject.label} does not pass: {why_not}"
        )
        if against is not None:
            difference = score_difference(result, reference, LEVEL)
        passed, before = why_not is None, None if against is None else reference
        comparisons.append(
            Comparison(subject.label, result, against, difference, passed, said, note, before)
        )
    return comparisons


def _of_reference(subject: Subject, result: EvalResult, gate: Gate) -> str:
    """Whether the reference would pass by itself, which decides nothing."""
    title = f"{subject.label} is the reference"
    if gate.rule == "paired":
        return f"{title}, which gate.rule paired does not judge: score {result.score:.4f}"
    before = subject.baseline
    is_known = before is not None and _has_guards_of(before, result, gate)
    verdict = judge(result, before if is_known and before is not None else result, gate)
    if verdict.passed:
        return f"{title} and passes: {verdict.numbers}"
    return f"{title} and does not pass: {verdict.objection or verdict.numbers}"


def _is_comparable(recorded: EvalResult, result: EvalResult) -> bool:
    """Whether an evaluation in a run had the same protocol, for all that enters the score."""
    return (
        recorded.protocol_hash == result.protocol_hash and recorded.sample_ids == result.sample_ids
    )


def _has_guards_of(baseline: EvalResult, result: EvalResult, gate: Gate) -> bool:
    """Whether a run's baseline tells what the guards may not fall below."""
    return _is_comparable(baseline, result) and baseline.names >= set(gate.guards)


def _worse(change: GateChange, against: str, numbers: str) -> str | None:
    interval = change.interval
    if interval is None or interval.high >= 0:
        return None
    return (
        f"{numbers}, but it is worse than {against} beyond noise: {signed_text(change.mean)} "
        f"{interval_text(interval, signed=True)}"
    )


def gate_for(gate: Gate, num_subjects: int) -> Gate:
    """The gate with its error spread over the checkpoints that are judged."""
    return replace(gate, max_rounds=max(1, num_subjects - 1))


# --- what is said ---------------------------------------------------------------------------------


def summary(comparison: Comparison) -> str:
    """One line: whether it passes and why, with the score, and what it is against the reference."""
    result = comparison.result
    counts = {"truncated": result.num_truncated, "malformed": result.num_malformed}
    counts["failed"] = result.num_failed
    flaws = "".join(f", {number} {name}" for name, number in counts.items() if number)
    interval = f"{LEVEL:.0%} interval {interval_text(result.interval)}, n={result.n}{flaws}"
    text = f"{comparison.verdict}; {interval}"
    if comparison.difference is not None:
        text += f"; {_difference_text(comparison.difference)} against {comparison.against}"
    return f"{text}.{comparison.note}"


def task_lines(result: EvalResult) -> Iterator[str]:
    """A line for each task and held-out loss, where there are more than one."""
    if len(result.names) > 1:
        for task in result.tasks:
            yield f"  {task.name}: {score_and_n(task)}{ROLE_NAMES[task.role]}"
        for loss in result.held_out:
            yield f"  {loss_text(loss)}, n={loss.n}"


def _difference_text(difference: ScoreDifference) -> str:
    return (
        f"{signed_text(difference.mean)} {interval_text(difference.interval, signed=True)} "
        f"({difference.method}{p_value_text(difference.p_value)})"
    )


def to_json(comparison: Comparison) -> dict[str, Any]:
    result, difference = comparison.result, comparison.difference
    return {
        "checkpoint": comparison.label,
        "path": result.checkpoint,
        "score": result.score,
        "interval": result.interval,
        "n": result.n,
        "num_truncated": result.num_truncated,
        "num_malformed": result.num_malformed,
        "num_failed": result.num_failed,
        "tasks": {task.name: task.score for task in result.tasks},
        "held_out_nll": {loss.name: loss.nll for loss in result.held_out},
        "against": comparison.against,
        "difference": None if difference is None else difference._asdict(),
        "passed": comparison.passed,
        "sentence": comparison.sentence,
    }


def write_comparison(
    store: RunStore, comparisons: Sequence[Comparison], config: TrainingConfig
) -> None:
    """Write eval_report.md of an evaluation."""
    lines = [
        f"# Evaluation of {len(comparisons)} checkpoint{'s' * (len(comparisons) > 1)}: "
        f"{inline(config.run_name)}",
        "",
        *(f"- {at_start(one.sentence)}" for one in comparisons),
        "",
        *_score_table(comparisons),
        *_task_table(comparisons),
    ]
    store.write_text("eval_report.md", "\n".join(lines) + "\n")


def _score_table(comparisons: Sequence[Comparison]) -> Iterator[str]:
    yield f"| checkpoint | weights | score, {LEVEL:.0%} interval | n | difference | flaws |"
    yield "|---|---|---|---|---|---|"
    for one in comparisons:
        result = one.result
        moved = "" if one.difference is None else _difference_text(one.difference)
        flaws = f"{result.num_truncated} truncated, {result.num_malformed} malformed"
        cells = [one.label, result.checkpoint or "untouched", score_text(result), str(result.n)]
        yield row([*cells, moved, f"{flaws}, {result.num_failed} failed"])
    yield ""


def _task_table(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Each task and held-out loss, with the paired difference to the first checkpoint."""
    first = comparisons[0].result
    yield row(["task", *(one.label for one in comparisons)])
    yield f"|---|{'---|' * len(comparisons)}"
    for task in first.tasks:
        cells = []
        for one in comparisons:
            mine = one.result.task(task.name)
            assert mine is not None, "all checkpoints are asked the same tasks"
            cell = score_text(mine)
            if mine is not task:
                moved = task_difference(mine, task, LEVEL)
                cell += f", {signed_text(moved.mean)} {interval_text(moved.interval, signed=True)}"
            cells.append(cell)
        yield row([f"{task.name} ({task.role})", *cells])
    for position, loss in enumerate(first.held_out):
        losses = [one.result.held_out[position] for one in comparisons]
        yield row([f"{loss.name}, nats a token", *(f"{one.nll:.4f}" for one in losses)])
