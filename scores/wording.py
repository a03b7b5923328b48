"""Scores, losses and p-values as all reports and lines write them."""

from __future__ import annotations

import operator
from collections.abc import Callable

from scores.intervals import Interval
from scores.results import SAME_SCORE, EvalResult, HeldOutLoss, TaskResult


def score_text(one: EvalResult | TaskResult) -> str:
    return f"{one.score:.4f} {interval_text(one.interval)}"


def interval_text(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None:
        return "[unknown]"
    if signed:  # of a difference, where the side of 0 that an end lies on says all
        return f"[{signed_text(interval.low, 2)}, {signed_text(interval.high, 2)}]"
    return f"[{interval.low:.2f}, {interval.high:.2f}]"


def signed_text(value: float, digits: int = 4) -> str:
    """A difference of scores with so many decimals, or as many as show that it is not 0."""
    value = 0.0 if abs(value) <= SAME_SCORE else value  # which has no sign
    shown = f"{value:+.{digits}f}"
    return f"{value:+.1g}" if value and float(shown) == 0 else shown


def share_text(part: float, whole: float = 1.0, *, digits: int = 0) -> str:
    """A share in percent. What is not nothing is not said to be 0 %, and what is not all not
    100 %: 1 of 10,000 is "less than 0.1%" with one digit, 9,999 of them "more than 99.9%"."""
    share, least = part / whole, 10.0 ** -(digits + 2)
    if 0 < share < least:
        return f"less than {least:.{digits}%}"
    if 1 - least < share < 1:
        return f"more than {1 - least:.{digits}%}"
    return f"{share:.{digits}%}"


def scores_apart(score: float, other: float) -> tuple[str, str]:
    """Two scores with four decimals, or as many as show that they are not the same."""
    if abs(score - other) <= SAME_SCORE:
        return f"{score:.4f}", f"{other:.4f}"
    texts = ((f"{score:.{digits}f}", f"{other:.{digits}f}") for digits in range(4, 18))
    return next(both for both in texts if both[0] != both[1])


def p_value_text(p_value: float | None) -> str:
    if p_value is None:
        return ""
    # A p is never 0; what is below the smallest number is rounded to it.
    return f", p = {p_digits(p_value)}" if p_value > 0 else ", p < 1e-300"


def p_digits(p_value: float) -> str:
    """A p to two digits, or as many as show on which side of 0.05 it is: 0.0499 is not 0.05."""
    texts = (f"{p_value:.{digits}g}" for digits in range(2, 18))
    return next(text for text in texts if (float(text) < ALPHA) == (p_value < ALPHA))


def beside(
    value: float,
    bound: float,
    *,
    is_met: bool,
    how: Callable[[float, float], bool] = operator.ge,
    sign: str = "",
) -> tuple[str, str]:
    """A value and its bound with digits enough to see that the one meets the other, or not: a score
    of 0.74999 is not shown as 0.7500 below 0.75."""
    shown = f"{value:{sign}.4f}", f"{bound:g}"
    if how(float(shown[0]), float(shown[1])) != is_met:
        shown = f"{value:{sign}.8f}", f"{bound:.8f}"
    if how(float(shown[0]), float(shown[1])) != is_met:
        shown = f"{value:{sign}.17g}", f"{bound:.17g}"
    return shown


ALPHA = 0.05  # that differences are told apart by
ROLE_NAMES = {"score": "", "guard": " (guard)", "report": " (beside the score)"}


def score_and_n(result: EvalResult | TaskResult) -> str:
    return f"{score_text(result)}, n={result.n}"


def loss_text(loss: HeldOutLoss) -> str:
    return (
        f"{loss.name}: loss {loss.nll:.4f} a token, perplexity {loss.perplexity:.4g}"
        f"{bits_text(loss)}"
    )


def bits_text(loss: HeldOutLoss) -> str:
    """Empty where they were not counted over the answers' text alone, as versions before did."""
    is_of_text = all(row.text_nll_sum is not None for row in loss.rows)
    is_known = loss.bits_per_byte is not None and is_of_text
    return f", {loss.bits_per_byte:.4f} bits per byte" if is_known else ""
