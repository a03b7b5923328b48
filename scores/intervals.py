"""Scores with their uncertainty: numbers in, numbers out.

A score is in [0, 1], one per question (repeats are averaged before). Questions that share a source
(a passage, a template) form a cluster and are not independent. `None` always means unknown; an
unknown uncertainty is never given as zero. Levels are two-sided and in (0, 1); a one-sided lower
bound at `alpha` is the lower end at level 1 - 2 * alpha.
Pure: no clock, no network, no randomness but one fixed seed. Nothing here decides anything.
Suffixes: _Q one per question, _G one per cluster, _B one per bootstrap resample.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from scores.distributions import (
    binomial_tail,
    student_t_cdf,
    student_t_quantile,
    two_sided_z,
    upper_share,
)

if TYPE_CHECKING:
    pass

NUM_RESAMPLES = 4999  # odd, so that (B + 1) * level is whole at the usual levels
TINY = 1e-12  # a spread of scores below this is rounding


class Interval(NamedTuple):
    """Both ends of a two-sided interval for a mean score or for a difference of two."""

    low: float
    high: float


UNIT = Interval(0.0, 1.0)  # where scores are
DIFFERENCE = Interval(-1.0, 1.0)  # where differences of two scores are


class Estimate(NamedTuple):
    """A mean score. `stderr` is the formula's, 0 for identical scores; `interval` never is so sure.

    `num_clusters` is None where no two questions share a cluster.
    """

    mean: float
    stderr: float | None
    interval: Interval | None
    method: Literal["wilson", "wilson, clustered", "student t", "student t, clustered", "unknown"]
    n: int
    num_clusters: int | None


class PairedDifference(NamedTuple):
    """Mean of after - before over the `n` questions in both. `p_value` is two-sided, for none."""

    mean: float
    stderr: float | None
    interval: Interval | None
    p_value: float | None
    method: Literal["exact McNemar", "paired t", "cluster bootstrap", "unknown"]
    n: int


def mean(values: Sequence[float]) -> float:
    """Plain mean, summed without rounding error so that 75 of 100 is exactly 0.75."""
    return math.fsum(values) / len(values)


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean, sample variance over n; None (unknown) for one value."""
    n = len(values)
    if n < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (n - 1) / n)


def clustered_standard_error(
    scores_Q: Sequence[float], clusters_Q: Sequence[Hashable]
) -> float | None:
    """Standard error of the plain mean where clusters, not questions, are independent.

    Miller 2024 (arXiv 2411.00640), section 2.2, times sqrt(G / (G - 1)): the sandwich CR1 of Liang
    and Zeger 1986. Without that factor it is too small for few clusters; with it, clusters of one
    question give `standard_error` exactly. None (unknown) for one cluster.
    """
    clusters = _cluster_totals(scores_Q, clusters_Q)
    num_clusters = len(clusters.sizes_G)
    if num_clusters < 2:
        return None
    centre = mean(scores_Q)
    squares = math.fsum(
        (total - size * centre) ** 2
        for total, size in zip(clusters.totals_G, clusters.sizes_G, strict=True)
    )
    return math.sqrt(num_clusters / (num_clusters - 1) * squares) / len(scores_Q)


class _Clusters(NamedTuple):
    totals_G: list[float]
    sizes_G: list[int]

    @property
    def effective_number(self) -> float:
        """Kish 1965: N^2 / sum(size^2), the number of equal clusters that weigh like these."""
        return sum(self.sizes_G) ** 2 / sum(size * size for size in self.sizes_G)


def _cluster_totals(scores_Q: Sequence[float], clusters_Q: Sequence[Hashable]) -> _Clusters:
    scores: dict[Hashable, list[float]] = {}
    for score, cluster in zip(scores_Q, clusters_Q, strict=True):
        scores.setdefault(cluster, []).append(score)
    return _Clusters([math.fsum(s) for s in scores.values()], [len(s) for s in scores.values()])


def wilson_interval(num_correct: float, n: float, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927, eq. 9; Brown, Cai and DasGupta 2001).

    Unlike mean +/- z * stderr it keeps its level near 0 and 1 and for small n. The counts may be
    fractions: effective counts of clustered questions.
    """
    if not (0 <= num_correct <= n and 0 < n < math.inf):
        raise ValueError(f"{num_correct} correct of {n} is not a proportion")
    z = two_sided_z(level)
    p = num_correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the exact bound is 0 or 1; rounding must not leave it a hair inside.
    low = 0.0 if num_correct == 0 else max(0.0, centre - half)
    high = 1.0 if num_correct == n else min(1.0, centre + half)
    return Interval(low, high)


def estimate(
    scores_Q: Sequence[float], clusters_Q: Sequence[Hashable] | None = None, level: float = 0.95
) -> Estimate:
    """Mean score with the interval that fits the scores; at least one score, all in [0, 1].

    Scores that are all 0 or 1: Wilson. Graded: Student t with n - 1 degrees of freedom. Clustered:
    the same two on the clustered standard error, with G* - 1 degrees of freedom. G* is the
    effective number of clusters (Kish), G for equal sizes; with G the t interval of 10 clusters of
    1 to 40 questions covered 0.89 instead of 0.95 (0.93 with G*). One question or one cluster has
    no known uncertainty. `benchmarks/eval_statistics.py` measures where few clusters fall short.
    """
    if not scores_Q or not all(0 <= score <= 1 for score in scores_Q):
        raise ValueError("scores must be in [0, 1], and there must be at least one")
    n, centre = len(scores_Q), mean(scores_Q)
    is_binary = all(score in (0, 1) for score in scores_Q)
    if clusters_Q is None or len(set(clusters_Q)) == n:
        stderr = standard_error(scores_Q)
        if stderr is None:
            return Estimate(centre, None, None, "unknown", n, None)
        if is_binary:
            interval = wilson_interval(math.fsum(scores_Q), n, level)
            return Estimate(centre, stderr, interval, "wilson", n, None)
        interval = _t_interval(centre, stderr, n, level, UNIT)
        return Estimate(centre, stderr, interval, "student t", n, None)
    stderr = clustered_standard_error(scores_Q, clusters_Q)
    clusters = _cluster_totals(scores_Q, clusters_Q)
    num_clusters = len(clusters.sizes_G)
    if stderr is None:
        return Estimate(centre, None, None, "unknown", n, num_clusters)
    if is_binary:
        n_eff = _effective_n(centre, stderr, n, clusters.effective_number, level)
        interval = wilson_interval(centre * n_eff, n_eff, level)
        return Estimate(centre, stderr, interval, "wilson, clustered", n, num_clusters)
    interval = _t_interval(centre, stderr, clusters.effective_number, level, UNIT)
    return Estimate(centre, stderr, interval, "student t, clustered", n, num_clusters)


def gate_interval(
    scores_Q: Sequence[float], clusters_Q: Sequence[Hashable] | None, level: float
) -> Interval | None:
    """The interval that a gate may rely on; None (unknown) for one question or one cluster.

    `estimate` describes; its Student t is too sure of graded scores near 0 or 1, and of few
    clusters: with scores of 0, 0.9 and 1 and n = 20 a one-sided 1.7 % bound was above the true mean
    in 5.7 % of cases, and one slightly worse answer could raise the bound. So as Wilson's interval
    does at heart (Agresti and Coull 1998), z^2 / 2 pseudo-questions, or clusters, are counted at
    each end, then Student t is taken; the lower end is at least Wilson's with every score below 1
    counted as 0. Unclustered scores of 0 and 1 have Wilson's interval itself.
    `benchmarks/eval_statistics.py` measures the levels.
    """
    n = len(scores_Q)
    if n < 2:
        return None
    wilson = wilson_interval(sum(score == 1 for score in scores_Q), n, level)
    if clusters_Q is None or len(set(clusters_Q)) == n:
        if all(score in (0, 1) for score in scores_Q):
            return wilson
        units, floor = _Clusters(list(scores_Q), [1] * n), wilson.low
    else:
        units, floor = _cluster_totals(scores_Q, clusters_Q), 0.0
        if len(units.sizes_G) < 2:
            return None
    interval = _padded_t_interval(units, two_sided_z(level) ** 2 / 2, level, UNIT)
    return Interval(max(interval.low, floor), interval.high)


def gate_difference(
    after: Mapping[str, float],
    before: Mapping[str, float],
    clusters: Mapping[str, str] | None,
    level: float,
) -> Interval | None:
    """The interval of a mean change that a gate may rely on, by question id; None for unknown.

    One pseudo-question (or cluster) that rose by 1 and one that fell by 1 are counted, as Bonett
    and Price 2012 do for right and wrong answers, then Student t is taken: one rule for all kinds
    of scores, so that a worse answer never makes a gain look surer.
    """
    ids = sorted(after.keys() & before.keys())
    names = ids if clusters is None else [clusters[id_] for id_ in ids]
    units = _cluster_totals([after[id_] - before[id_] for id_ in ids], names)
    if len(units.sizes_G) < 2:
        return None
    return _padded_t_interval(units, 1.0, level, DIFFERENCE)


def _padded_t_interval(
    units: _Clusters, num_pseudo: float, level: float, bounds: Interval
) -> Interval:
    """Student t on the mean, with `num_pseudo` more units of average size at each bound."""
    size = sum(units.sizes_G) / len(units.sizes_G)
    num_questions = sum(units.sizes_G) + 2 * num_pseudo * size
    pseudo_total = num_pseudo * size * (bounds.low + bounds.high)
    centre = (math.fsum(units.totals_G) + pseudo_total) / num_questions
    squares = math.fsum(
        (total - number * centre) ** 2
        for total, number in zip(units.totals_G, units.sizes_G, strict=True)
    )
    squares += num_pseudo * size**2 * sum((bound - centre) ** 2 for bound in bounds)
    num_units = len(units.sizes_G) + 2 * num_pseudo
    square_sizes = sum(number * number for number in units.sizes_G) + 2 * num_pseudo * size**2
    half = student_t_quantile(upper_share(level), _degrees(num_questions**2 / square_sizes))
    half *= math.sqrt(num_units / (num_units - 1) * squares) / num_questions
    observed = math.fsum(units.totals_G) / sum(units.sizes_G)
    return Interval(
        max(bounds.low, min(centre - half, observed)),
        min(bounds.high, max(centre + half, observed)),
    )


def _effective_n(centre: float, stderr: float, n: int, num_clusters: float, level: float) -> float:
    """How many independent binary questions clustered ones are worth: n / design effect.

    Korn and Graubard 1998 (Survey Methodology 24:193), eq. 2: n / deff, shrunk by the ratio of t
    quantiles for the few clusters behind deff; never above n.
    """
    if centre in (0, 1):
        return num_clusters  # no spread to see a design effect in: suppose the largest
    independent = centre * (1 - centre) / (n - 1)  # `standard_error` squared
    n_eff = n * min(1.0, independent / stderr**2) if stderr > TINY else n
    p = upper_share(level)
    shrink = student_t_quantile(p, n - 1) / student_t_quantile(p, _degrees(num_clusters))
    return n_eff * min(1.0, shrink**2)


def _degrees(num_units: float) -> float:
    return max(1.0, num_units - 1)


def _t_interval(
    centre: float, stderr: float, num_units: float, level: float, bounds: Interval
) -> Interval:
    """Student t around a mean of `num_units` independent values, or clusters, cut to the bounds.

    Identical values show no spread, but a few of them do not prove that there is none. The share of
    values that would differ is then at most Wilson's upper end for 0 of n (the rule of three), and
    those lie inside the bounds; for scores that are all 1 this is Wilson's own interval.
    """
    if stderr <= TINY:
        share = wilson_interval(0, num_units, level).high
        return Interval(
            centre - share * (centre - bounds.low), centre + share * (bounds.high - centre)
        )
    half = student_t_quantile(upper_share(level), _degrees(num_units)) * stderr
    return Interval(max(bounds.low, centre - half), min(bounds.high, centre + half))


def combine(
    means: Sequence[float], intervals: Sequence[Interval | None], bounds: Interval = UNIT
) -> Interval | None:
    """Interval for the plain mean of independent tasks' means: MOVER.

    Zou and Donner 2008 (Statistics in Medicine 27:1693): each side adds the tasks' own distances in
    squares, so skewed intervals stay skewed. One task keeps its interval; any unknown: None.
    """
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(intervals):
        return None
    if len(known) == 1:
        return known[0]
    k, centre = len(known), mean(means)
    below = math.hypot(*(m - i.low for m, i in zip(means, known, strict=True))) / k
    above = math.hypot(*(i.high - m for m, i in zip(means, known, strict=True))) / k
    return Interval(max(bounds.low, centre - below), min(bounds.high, centre + above))


def combined_stderr(stderrs: Sequence[float | None]) -> float | None:
    """Standard error of the plain mean of k independent means: sqrt(sum(se^2)) / k."""
    known = [stderr for stderr in stderrs if stderr is not None]
    return math.hypot(*known) / len(known) if len(known) == len(stderrs) else None


def mcnemar_exact(num_better: int, num_worse: int) -> float:
    """Two-sided exact p of McNemar's test: the sign test on the questions that changed.

    Twice the binomial tail at one half, at most 1 (McNemar 1947; Fagerland et al. 2013).
    """
    n, fewer = num_better + num_worse, min(num_better, num_worse)
    if fewer < 0:
        raise ValueError(f"{num_better} better and {num_worse} worse are not counts")
    return 1.0 if 2 * fewer >= n else min(1.0, 2 * binomial_tail(n - fewer, n, 0.5))


def paired_difference(
    after: Mapping[str, float],
    before: Mapping[str, float],
    clusters: Mapping[str, str] | None = None,
    *,
    is_repeated: bool = False,
    level: float = 0.95,
) -> PairedDifference:
    """Mean change of the questions in both, by question id; `clusters` names each one's cluster.

    Binary, asked once, unclustered: exact McNemar p, and Bonett and Price's interval; these are two
    methods and may disagree at the border. Otherwise Student t on the differences, or, where
    questions share clusters, the bootstrap of `_bootstrap_t`. Identical differences: `_t_interval`
    says how sure they make us, and p is the sign test's; so it is, over clusters, where nearly all
    changed alike and resamples have no spread. One question or one cluster: unknown.
    """
    upper_share(level)  # refuses a level outside (0, 1), whatever the method
    ids = sorted(after.keys() & before.keys())
    if not ids:
        raise ValueError("no question is in both evaluations")
    changes_Q = [after[id_] - before[id_] for id_ in ids]
    n, centre = len(ids), mean(changes_Q)
    clusters_Q = ids if clusters is None else [clusters[id_] for id_ in ids]
    stderr = clustered_standard_error(changes_Q, clusters_Q)
    if stderr is None:
        return PairedDifference(centre, None, None, None, "unknown", n)
    grouped = _cluster_totals(changes_Q, clusters_Q)
    num_units = len(grouped.sizes_G)
    is_clustered = num_units < n
    is_binary = all(score in (0, 1) for id_ in ids for score in (after[id_], before[id_]))
    if is_binary and not is_repeated and not is_clustered:
        better, worse = changes_Q.count(1), changes_Q.count(-1)
        interval = _bonett_price_interval(better, worse, n, level)
        p_value = mcnemar_exact(better, worse)
        return PairedDifference(centre, stderr, interval, p_value, "exact McNemar", n)
    method = "cluster bootstrap" if is_clustered else "paired t"
    if stderr <= TINY:
        interval = _t_interval(centre, stderr, grouped.effective_number, level, DIFFERENCE)
        p_value = 1.0 if abs(centre) <= TINY else mcnemar_exact(num_units, 0)
    elif is_clustered:
        critical, p_value = _bootstrap_t(grouped, centre, stderr, level)
        if math.isinf(critical):  # resamples without spread: nothing is known beyond the bounds
            interval = _padded_t_interval(grouped, 1.0, level, DIFFERENCE)
            signs = [math.copysign(1, total) for total in grouped.totals_G if abs(total) > TINY]
            p_value = mcnemar_exact(signs.count(1), signs.count(-1))
        else:
            half = critical * stderr
            interval = Interval(max(-1.0, centre - half), min(1.0, centre + half))
    else:
        interval = _t_interval(centre, stderr, n, level, DIFFERENCE)
        p_value = min(1.0, 2 * student_t_cdf(-abs(centre / stderr), n - 1))
    return PairedDifference(centre, stderr, interval, p_value, method, n)


def _bonett_price_interval(better: int, worse: int, n: int, level: float) -> Interval:
    """Bonett and Price 2012 (J. Educ. Behav. Stat. 37:479), adjusted Wald for paired proportions.

    One question is added to each kind of change. Recommended for small n by Fagerland et al. 2014.
    """
    p_better, p_worse = (better + 1) / (n + 2), (worse + 1) / (n + 2)
    centre = p_better - p_worse
    half = two_sided_z(level) * math.sqrt((p_better + p_worse - centre**2) / (n + 2))
    return Interval(max(-1.0, centre - half), min(1.0, centre + half))


class _BootstrapT(NamedTuple):
    critical: float  # may be infinite: more resamples than 1 - level had no spread at all
    p_value: float


def _bootstrap_t(clusters: _Clusters, centre: float, stderr: float, level: float) -> _BootstrapT:
    """Symmetric bootstrap-t over whole clusters (Hall 1988; Cameron, Gelbach and Miller 2008).

    Chosen by simulation of no change at level 0.95, 2,000 runs a cell, equal and unequal (1 to 40
    questions) clusters, correlation 0.7 and 0.1, normal and -1/0/+1 changes. Wrong rejections with
    10 to 50 clusters: at most 0.06 by this method (0.03 where 6 % of questions changed), 0.12 by
    percentiles times sqrt(G / (G - 1)), 0.15 by the equal-tailed bootstrap-t, 0.12 by Student t
    with G - 1 degrees, 0.67 by the plain paired t. Not repaired by any of them: few clusters whose
    rare changes all go one way. With 2 or 3 clusters, or few that changed, the critical value may
    be infinite; `gate_difference`'s interval then stands in.
    """
    import numpy as np

    totals_G, sizes_G = np.array(clusters.totals_G), np.array(clusters.sizes_G, dtype=float)
    num_clusters = len(totals_G)
    residuals_G = totals_G - centre * sizes_G
    columns_G5 = np.stack(
        [sizes_G, residuals_G, residuals_G**2, residuals_G * sizes_G, sizes_G**2], axis=1
    )
    rng = np.random.default_rng(0)  # the same evaluations must give the same interval
    rows = max(1, 1_000_000 // num_clusters)  # bounds the memory of one block of resamples
    sums = []
    for start in range(0, NUM_RESAMPLES, rows):
        num_rows = min(rows, NUM_RESAMPLES - start)
        picks = rng.integers(num_clusters, size=(num_rows, num_clusters))
        picks += num_clusters * np.arange(num_rows)[:, None]
        counts = np.bincount(picks.ravel(), minlength=num_rows * num_clusters)
        sums.append(counts.reshape(num_rows, num_clusters) @ columns_G5)
    n_B, residual_B, square_B, cross_B, size_square_B = np.concatenate(sums).T
    shift_B = residual_B / n_B
    # The clustered variance of each resample around its own mean, expanded into the sums.
    spread_B = square_B - 2 * shift_B * cross_B + shift_B**2 * size_square_B
    spread_B[spread_B <= TINY * float((residuals_G**2).sum())] = 0.0
    stderr_B = np.sqrt(num_clusters / (num_clusters - 1) * spread_B) / n_B
    # A resample without spread is infinitely far off, unless its mean is the sample's own.
    t_B = np.where(np.abs(shift_B) <= TINY, 0.0, np.inf)
    np.divide(np.abs(shift_B), stderr_B, out=t_B, where=stderr_B > 0)
    t_B = np.append(np.sort(t_B), np.inf)  # what lies beyond the resamples is not known
    critical = float(t_B[math.ceil((NUM_RESAMPLES + 1) * level - 1e-9) - 1])
    reached = abs(centre) / stderr * (1 - TINY)
    return _BootstrapT(critical, float((t_B >= reached).mean()))
