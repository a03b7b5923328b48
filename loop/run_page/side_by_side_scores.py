"""Checkpoints of several runs held against each other, question by question. Pure.

Two scores are compared where they are of the same questions, asked and graded in the same way;
otherwise what differs takes the place of the difference. p-values are Holm's over all pairs that
are compared. Each run is one seed of its settings, so what is told is of these checkpoints.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from errors import one_line
from scores.comparisons import Answers, difference, holm
from scores.intervals import Interval, PairedDifference
from scores.results import (
    LEVEL,
    SAME_SCORE,
    EvalResult,
    SampleResult,
    TaskResult,
    moved_questions,
    task_difference,
)
from scores.wording import ALPHA, interval_text, p_digits, signed_text

SMALLEST_P = 1e-4  # below, p hangs on the far end of a distribution, of which questions say nothing
VALUE_CHARS = 40


class Side(NamedTuple):
    """A checkpoint that was evaluated, by the name that the reader gave it."""

    label: str
    result: EvalResult


class Pair(NamedTuple):
    """By how much the score of `one` is above that of `other`, or why that is not told."""

    one: str
    other: str
    why_not: str  # empty where they are compared
    mean: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    p_holm: float | None = None
    method: str = ""
    num_questions: int = 0

    @property
    def is_told_apart(self) -> bool:
        return self.p_holm is not None and self.p_holm < ALPHA  # of all pairs together

    @property
    def sentence(self) -> str:
        both = f"{self.one} and {self.other}"
        if self.mean is None:
            return f"{both} are not compared: {self.why_not}."
        told = "cannot be told apart"
        if self.is_told_apart:
            told = "differ"
            both = f"{self.one} scores {'higher' if self.mean > 0 else 'lower'} than {self.other}"
        by_holm = "" if self.p_holm is None else " by Holm"
        return (
            f"{both}: these two checkpoints {told}: {signed_text(self.mean)} "
            f"{interval_text(self.interval, signed=True)}, {p_text(self.p_holm)}{by_holm}, "
            f"paired on {self.num_questions} question{'s' * (self.num_questions != 1)}."
        )


def p_text(p_value: float | None) -> str:
    """A p as it is written, no more exact than it is known."""
    if p_value is None:
        return "p unknown"
    return f"p < {SMALLEST_P:.4f}" if p_value < SMALLEST_P else f"p = {p_digits(p_value)}"


# --- what can be compared -------------------------------------------------------------------------


def other_protocol(one: EvalResult, other: EvalResult) -> str:
    """How two evaluations differ in what was asked of all tasks; empty where they do not.

    The seed of sampling counts where answers are sampled: greedy ones do not depend on it.
    """
    mine, its = one.protocol, other.protocol
    keys = sorted((mine.keys() | its.keys()) - {"tasks"})
    if mine.get("temperature") == 0 == its.get("temperature"):
        keys = [key for key in keys if key != "seed"]
    differing = [
        f"{key} {_value(mine.get(key))} and {_value(its.get(key))}"
        for key in keys
        if mine.get(key) != its.get(key)
    ]
    return ", ".join(one_line(text, 2 * VALUE_CHARS) for text in differing)


def _value(value: Any) -> str:
    return "none" if value is None else one_line(repr(value), VALUE_CHARS)


def other_task(name: str, one: EvalResult, other: EvalResult) -> str:
    """Why a task's scores are not compared; empty where they are."""
    mine, its = one.task(name), other.task(name)
    if mine is None or its is None:
        return f"{name} was not asked of both"
    if protocol := other_protocol(one, other):
        return f"they were asked with different settings: {protocol}"
    if _of_task(one, name) != _of_task(other, name):
        return f"{name} was not the same task for both: its questions, arguments or code differ"
    if mine.scores.keys() != its.scores.keys():
        both = len(mine.scores.keys() & its.scores.keys())
        return f"{name} has {mine.n} and {its.n} questions, of which {both} are the same"
    return ""


def _of_task(result: EvalResult, name: str) -> Mapping[str, Any]:
    """What tells a task from another of its name, but for how it enters the score."""
    tasks = result.protocol.get("tasks")
    found = tasks.get(name) if isinstance(tasks, dict) else None
    return {k: v for k, v in found.items() if k != "role"} if isinstance(found, dict) else {}


def why_not_compared(one: EvalResult, other: EvalResult) -> str:
    """Why two scores are not compared; empty where they are."""
    mine, its = ({task.name for task in result.scored_tasks} for result in (one, other))
    if mine != its:
        names = ", ".join(sorted(mine ^ its))
        return f"their scores are of different tasks ({one_line(names, 2 * VALUE_CHARS)})"
    return next((why for name in sorted(mine) if (why := other_task(name, one, other))), "")


# --- differences ----------------------------------------------------------------------------------


def pairs_of(sides: Sequence[Side]) -> list[Pair]:
    """Every pair, the one with the higher score first, in the order of the scores."""
    ordered = sorted(sides, key=lambda side: -side.result.score)
    pairs = [_pair(one, other) for one, other in itertools.combinations(ordered, 2)]
    compared = [pair.p_value for pair in pairs if pair.mean is not None]
    adjusted = iter(holm(compared))
    return [p if p.mean is None else p._replace(p_holm=next(adjusted)) for p in pairs]


def _pair(one: Side, other: Side) -> Pair:
    if why_not := why_not_compared(one.result, other.result):
        return Pair(one.label, other.label, why_not)
    tasks = [(task, other.result.task(task.name)) for task in one.result.scored_tasks]
    moved = difference(
        [_answers(one.result)],
        [_answers(other.result)],
        {task.name: task.clusters for task, _ in tasks},
        is_repeated=any(t is not None and t.num_repeats > 1 for both in tasks for t in both),
    )
    return Pair(
        one.label,
        other.label,
        "",
        mean=0.0 if abs(moved.mean) <= SAME_SCORE else moved.mean,
        interval=moved.interval,
        p_value=moved.p_value,
        method=moved.method,
        num_questions=moved.n,
    )


def _answers(result: EvalResult) -> Answers:
    return {task.name: task.scores for task in result.scored_tasks}


def turned(pair: Pair) -> Pair:
    """The same difference, seen from the other checkpoint."""
    interval = pair.interval
    return pair._replace(
        one=pair.other,
        other=pair.one,
        mean=None if pair.mean is None else 0.0 - pair.mean,
        interval=None if interval is None else Interval(-interval.high, -interval.low),
    )


def against(reference: str, pairs: Sequence[Pair]) -> list[Pair]:
    """Every other checkpoint less the reference."""
    found = [
        p if p.other == reference else turned(p) for p in pairs if reference in (p.one, p.other)
    ]
    return sorted(found, key=lambda pair: -1e9 if pair.mean is None else -pair.mean)


class TaskPair(NamedTuple):
    """By how much a task's score differs from the reference's, or why that is not told."""

    label: str
    task: TaskResult
    before: TaskResult | None
    why_not: str
    moved: PairedDifference | None


def task_pairs(sides: Sequence[Side]) -> list[TaskPair]:
    """Each task of each checkpoint against the first checkpoint's, also those beside the score."""
    reference, *others = sides
    found = []
    for side in others:
        for task in side.result.tasks:
            before = reference.result.task(task.name)
            why_not = other_task(task.name, side.result, reference.result)
            moved = None
            if before is not None and not why_not:
                moved = task_difference(task, before, LEVEL)
            found.append(TaskPair(side.label, task, before, why_not, moved))
    return found


# --- in one sentence ------------------------------------------------------------------------------


def headline(sides: Sequence[Side], pairs: Sequence[Pair]) -> str:
    """What the comparison shows, of these checkpoints and these questions."""
    if not sides:
        return "None of these runs has an evaluated checkpoint yet, so nothing is compared."
    if len(sides) == 1:
        return f"{sides[0].label} alone has been evaluated, so nothing is compared."
    compared = [pair for pair in pairs if pair.mean is not None]
    if not compared:
        reasons = list(dict.fromkeys(pair.why_not for pair in pairs))
        return (
            "No two of these checkpoints were asked the same questions in the same way, so their "
            f"scores are not compared: {reasons[0]}."
        )
    if len(pairs) == 1:
        return f"{pairs[0].sentence} It says nothing of the settings."
    best = max(sides, key=lambda side: side.result.score)
    with_best = [pair for pair in compared if best.label in (pair.one, pair.other)]
    apart = [_other(pair, best.label) for pair in with_best if pair.is_told_apart]
    alike = [_other(pair, best.label) for pair in with_best if not pair.is_told_apart]
    same = [one.label for one in sides if best.result.score - one.result.score <= SAME_SCORE]
    head = "has the highest score" if len(same) == 1 else "share the highest score"
    it = "it" if len(same) == 1 else best.label
    told = [f"{it} is told apart from {listed(apart)}"] if apart else []
    told += [f"{it} cannot be told apart from {listed(alike)}"] if alike else []
    if num_left := len(sides) - 1 - len(with_best):
        were = "was" if num_left == 1 else "were"
        told.append(f"{it} is not compared with {num_left} that {were} asked otherwise")
    return (
        f"Of these {len(sides)} checkpoints {listed(same)} {head}, "
        f"{best.result.score:.4f} {interval_text(best.result.interval)}: {'; '.join(told)}. "
        "It says nothing of the settings."
    )


def _other(pair: Pair, label: str) -> str:
    return pair.other if pair.one == label else pair.one


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names as a sentence has them: a, b and c; of many the first."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- which questions ------------------------------------------------------------------------------


class Changed(NamedTuple):
    """A question that two checkpoints scored differently on; scores are means over repeats."""

    question: str
    expected: str
    before: float
    after: float
    answer_before: str
    answer_after: str


class Changes(NamedTuple):
    """How one checkpoint's answers to a task stand to the reference's, by number and in full."""

    task: str
    num_same_right: int
    num_same_other: int  # alike, and not fully right
    gained: list[Changed]
    lost: list[Changed]


def changes_of(name: str, before: EvalResult, after: EvalResult) -> Changes:
    """Which questions of a task the one scored higher on, and which the other; both were asked the
    same (`other_task` is empty)."""
    was, now = before.task(name), after.task(name)
    assert was is not None and now is not None, "both were asked the task"
    moved = {one.before.id: one for one in moved_questions(now, was)}
    same = [score for question, score in was.scores.items() if question not in moved]
    gained, lost = [], []
    for id_, one in moved.items():
        found = Changed(
            one.before.question,
            " or ".join(one.before.expected),
            was.scores[id_],
            now.scores[id_],
            _answer(one.before),
            _answer(one.after),
        )
        (gained if one.change > 0 else lost).append(found)
    num_right = sum(score >= 1 for score in same)
    return Changes(name, num_right, len(same) - num_right, gained, lost)


def _answer(sample: SampleResult) -> str:
    return f"(failed: {sample.error})" if sample.error is not None else sample.answer or ""
