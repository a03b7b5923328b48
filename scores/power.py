"""What a number of questions can tell: how many are needed, how often chance alone stops a run."""

from __future__ import annotations

import math
from bisect import bisect_left
from statistics import NormalDist
from typing import Literal, NamedTuple

from scores.comparisons import MIN_SEEDS, Parts, half_width
from scores.distributions import binomial_tail, two_sided_z
from scores.intervals import wilson_interval

StopRule = Literal["mean", "lower_bound"]
MAX_QUESTIONS = 1_000_000
MAX_SEEDS = 100


def questions_needed(low: float, high: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Binary questions for a one-sided test of `low` to reject it with `power` if `high` is true.

    Fleiss, Levin and Paik 2003, section 2.5, one sample, without continuity correction.
    """
    return max(1, math.ceil(_fleiss_n(low, high, alpha, power) - 1e-9))


def questions_needed_unpaired(
    low: float, high: float, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Questions for each of two checkpoints that are asked different ones, one-sided.

    Fleiss, Levin and Paik 2003, chapter 4, equal numbers, without continuity correction.
    """
    z_alpha, z_power = _quantiles(low, high, alpha, power)
    middle = (low + high) / 2
    spread = z_alpha * math.sqrt(2 * middle * (1 - middle))
    spread += z_power * math.sqrt(low * (1 - low) + high * (1 - high))
    return _whole(spread / (high - low))


def questions_needed_paired(
    low: float, high: float, changed: float, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Questions that two checkpoints are both asked, where the share `changed` of the answers turns
    from wrong to right or back; one-sided.

    Connor 1987, Biometrics 43:207, McNemar's test without continuity correction.
    """
    z_alpha, z_power = _quantiles(low, high, alpha, power)
    gain = high - low
    spread = z_alpha * math.sqrt(changed)
    spread += z_power * math.sqrt(max(0.0, changed - gain * gain))
    return _whole(spread / gain)


class Changes(NamedTuple):
    """Which shares of answers may change between a score and a higher one: at least those that
    bring the gain, as many as of two checkpoints that have nothing to do with each other, and at
    most all that can."""

    least: float
    independent: float
    most: float


def possible_changes(low: float, high: float) -> Changes:
    gain = high - low
    independent = low * (1 - high) + high * (1 - low)
    return Changes(gain, independent, gain + 2 * min(low, 1 - high))


def smallest_difference(
    n: int, score: float, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Smallest drop below `score` that `n` binary questions tell apart, by `questions_needed`.

    None where n questions do not even tell `score` from 0.
    """
    if score <= 0 or _fleiss_n(0.0, score, alpha, power) > n:
        return None
    too_small, enough = 0.0, score
    for _ in range(60):
        middle = (too_small + enough) / 2
        if middle > 0 and _fleiss_n(score - middle, score, alpha, power) <= n:
            enough = middle
        else:
            too_small = middle
    return enough


def _fleiss_n(low: float, high: float, alpha: float, power: float) -> float:
    z_alpha, z_power = _quantiles(low, high, alpha, power)
    spread = z_alpha * math.sqrt(low * (1 - low))
    spread += z_power * math.sqrt(high * (1 - high))
    ratio = spread / (high - low)
    return ratio * ratio  # `** 2` raises where the difference is next to nothing


def _quantiles(low: float, high: float, alpha: float, power: float) -> tuple[float, float]:
    """Of the normal distribution, for the error and for the power."""
    if not 0 <= low < high <= 1 or not 0 < alpha < 0.5 <= power < 1:
        raise ValueError(f"cannot tell {high} from {low} at alpha {alpha} with power {power}")
    normal = NormalDist()
    return normal.inv_cdf(1 - alpha), normal.inv_cdf(power)


def _whole(ratio: float) -> int:
    return max(1, math.ceil(ratio * ratio - 1e-9))


def false_stop_risk(
    rule: StopRule,
    n: int,
    threshold: float,
    true_score: float,
    num_looks: int,
    alpha: float = 0.05,
) -> float:
    """Chance that one of `num_looks` independent evaluations of n binary questions passes.

    Exact (binomial). "mean" passes when the mean reaches the threshold, "lower_bound" when the
    lower end of Wilson's interval at the one-sided level alpha / num_looks (Bonferroni) does.
    """
    level = _look_level(alpha, num_looks)

    def passes(num_correct: int) -> bool:
        if rule == "mean":
            return num_correct / n >= threshold
        return wilson_interval(num_correct, n, level).low >= threshold

    smallest = bisect_left(range(n + 1), True, key=passes)
    return _any_of(binomial_tail(smallest, n, true_score), num_looks)


def false_stop_risk_normal(
    rule: StopRule,
    stderr: float,
    threshold: float,
    true_score: float,
    num_looks: int,
    alpha: float = 0.05,
) -> float:
    """`false_stop_risk` where the mean is normal with a known `stderr`: graded or several tasks."""
    distance = (threshold - true_score) / stderr
    if rule == "lower_bound":
        distance += two_sided_z(_look_level(alpha, num_looks))
    return _any_of(NormalDist().cdf(-distance), num_looks)


def _look_level(alpha: float, num_looks: int) -> float:
    return 1 - 2 * alpha / num_looks


def _any_of(chance: float, num_looks: int) -> float:
    return 1.0 if chance >= 1 else -math.expm1(num_looks * math.log1p(-chance))


class Needed(NamedTuple):
    """What would show an effect: so many questions with the seeds that there are, or so many seeds
    with the questions that there are, or both more. None: not with any number up to the limits."""

    questions: int | None
    seeds: int | None
    both: tuple[int, int] | None  # questions and seeds


def needed_to_show(
    effect: float, parts: Parts, n: int, num_seeds: int, power: float = 0.8
) -> Needed:
    """How much has to be asked for a two-sided 5 % test of 0 to find `effect` with `power`.

    The parts of the variance are those observed with `n` questions and `num_seeds` seeds; what
    neither explains shrinks with both. Rounded up to two digits.
    """
    distance = abs(effect)
    seeds = num_seeds if parts.seeds or num_seeds >= MIN_SEEDS else 0

    def shows(num_questions: float, k: int) -> bool:
        more, again = num_questions / n, k / num_seeds if seeds else 1.0
        residual = parts.residual / more / again if seeds else 0.0
        of_seeds = max(0.0, parts.seeds - parts.residual) / again + residual if seeds else 0.0
        own = parts.questions - (parts.residual if seeds else 0.0)
        of_questions = max(0.0, own) / more + residual
        seeds_df = parts.seeds_df * (k - 1) / max(1, num_seeds - 1)
        scaled = Parts(of_seeds, of_questions, residual, parts.questions_df * more, seeds_df)
        width = half_width(scaled, 0.05) + half_width(scaled, 2 * (1 - power))
        return width <= distance

    # Both parts shrink as either number grows, so what is enough is found by halving.
    sizes = [n * 1.05**i for i in range(1, 600) if n * 1.05**i <= MAX_QUESTIONS]

    def fewest(k: int) -> int | None:
        at = bisect_left(sizes, True, key=lambda size: shows(size, k))
        return _two_digits(sizes[at]) if at < len(sizes) else None

    questions = fewest(num_seeds)
    if not seeds:
        return Needed(questions, None, None)
    counts = range(num_seeds + 1, MAX_SEEDS + 1)
    at = bisect_left(counts, True, key=lambda k: shows(n, k))
    more_seeds = counts[at] if at < len(counts) else None
    both = None
    if questions is None and more_seeds is None:
        tried = ((fewest(k), k) for k in (5, 10, 20, 50, MAX_SEEDS) if k > num_seeds)
        both = next(((size, k) for size, k in tried if size is not None), None)
    return Needed(questions, more_seeds, both)


def _two_digits(value: float) -> int:
    """Rounded up to two digits."""
    unit = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit - 1e-9) * unit
