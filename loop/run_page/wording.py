"""Losses, differences and texts as every part of a page writes them."""

from __future__ import annotations

from scores.intervals import PairedDifference
from scores.results import (
    LEVEL,
    EvalResult,
    ScoreDifference,
    TaskResult,
    score_difference,
    task_difference,
)
from scores.wording import interval_text, p_value_text, signed_text

MOST_CHARS = 240


def loss_text(value: float) -> str:
    """A loss with digits enough to read, however large or small it is."""
    is_usual = value == 0 or 1e-3 <= abs(value) < 1e6
    return f"{value:.4f}" if is_usual else f"{value:.4g}"


def cut(text: str) -> str:
    """A text as a cell of a table has room for it."""
    flat = " ".join(text.split())
    return flat if len(flat) <= MOST_CHARS else flat[: MOST_CHARS - 3] + "..."


def gain_of(after: EvalResult, before: EvalResult) -> ScoreDifference | None:
    """By how much the score moved; None where the two have not asked the same questions, as
    those of one run have."""
    for task in after.scored_tasks:
        other = before.task(task.name)
        if other is None or not task.scores.keys() & other.scores.keys():
            return None
    return score_difference(after, before, LEVEL)


def change_text(after: TaskResult, before: TaskResult | None) -> str:
    """By how much a task's score moved, with its interval; empty where that is not known."""
    if before is None or not after.scores.keys() & before.scores.keys():
        return ""
    return gain_text(task_difference(after, before, LEVEL))


def gain_text(moved: ScoreDifference | PairedDifference | None) -> str:
    if moved is None:
        return "not known"
    shown = f"{signed_text(moved.mean)} {interval_text(moved.interval, signed=True)}"
    return shown + p_value_text(moved.p_value)
