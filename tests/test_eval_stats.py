"""Scores and intervals against published values, scipy and statsmodels, and by simulation."""

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from loop.methods.sft import batch_loss
from scores.distributions import student_t_cdf, student_t_quantile
from scores.intervals import (
    DIFFERENCE,
    Interval,
    clustered_standard_error,
    combine,
    combined_stderr,
    estimate,
    gate_difference,
    gate_interval,
    mcnemar_exact,
    mean,
    paired_difference,
    standard_error,
    wilson_interval,
)
from scores.power import (
    StopRule,
    false_stop_risk,
    false_stop_risk_normal,
    questions_needed,
    smallest_difference,
)

TRUE_SCORES = np.arange(1, 20) / 20
UNEQUAL = (1, 2, 3, 5, 8, 10, 12, 15, 24, 40)


def by_id(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    return {f"q{i:04}": float(value) for i, value in enumerate(values)}


def outcomes(better: int, worse: int, n: int) -> tuple[dict[str, float], dict[str, float]]:
    """After and before: `better` questions go from 0 to 1, `worse` from 1 to 0, the rest stay."""
    stay = n - better - worse
    after = [1.0] * better + [0.0] * worse + [float(i % 2) for i in range(stay)]
    before = [0.0] * better + [1.0] * worse + [float(i % 2) for i in range(stay)]
    return by_id(after), by_id(before)


def copied(rng: np.random.Generator, sizes: Sequence[int], icc: float, kind: str) -> np.ndarray:
    """Values with correlation `icc` inside clusters; a question copies its cluster's draw or not.

    "changes" are -1, 0 or +1 with mean 0; "normal" has mean 0 and standard deviation 0.2.
    """
    owner = np.repeat(np.arange(len(sizes)), sizes)
    if kind == "normal":
        shared, own = rng.normal(size=len(sizes)), rng.normal(size=len(owner))
        return 0.2 * (math.sqrt(icc) * shared[owner] + math.sqrt(1 - icc) * own)
    values = np.array([-1.0, 0.0, 1.0])
    shared = rng.choice(values, size=len(sizes), p=[0.15, 0.7, 0.15])
    own = rng.choice(values, size=len(owner), p=[0.15, 0.7, 0.15])
    return np.where(rng.random(len(owner)) < math.sqrt(icc), shared[owner], own)


def cluster_names(sizes: Sequence[int]) -> dict[str, str]:
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return {f"q{i:04}": f"passage {cluster}" for i, cluster in enumerate(owner)}


def split(changes: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    """After and before with these differences."""
    return by_id(np.maximum(changes, 0)), by_id(np.maximum(-changes, 0))


def wilson_coverage(n: int, level: float = 0.95) -> np.ndarray:
    """Exact coverage at each of TRUE_SCORES, enumerated over the binomial."""
    ends = np.array([wilson_interval(k, n, level) for k in range(n + 1)])
    covers = (ends[:, :1] <= TRUE_SCORES) & (ends[:, 1:] >= TRUE_SCORES)
    return (stats.binom.pmf(np.arange(n + 1)[:, None], n, TRUE_SCORES) * covers).sum(axis=0)


# Student's t and other formulas against scipy and statsmodels.


@pytest.mark.parametrize("df", [0.5, 1, 1.5, 2, 3.7, 9, 19.9, 39, 40.5, 99, 1234.5, 1e5, 1e6])
def test_student_t_agrees_with_scipy(df: float) -> None:
    for p in (1e-10, 1e-4, 0.01, 0.025, 0.3, 0.4999, 0.5, 0.6, 0.95, 0.975, 0.9995, 1 - 1e-9):
        expected = float(stats.t.ppf(p, df))
        assert student_t_quantile(p, df) == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert student_t_cdf(expected, df) == pytest.approx(p, rel=1e-9, abs=1e-12)


def test_student_t_refuses_what_has_no_value() -> None:
    with pytest.raises(ValueError, match="1 is not a probability"):
        student_t_quantile(1, 5)
    with pytest.raises(ValueError, match="0 degrees"):
        student_t_cdf(1.0, 0)


# Newcombe 1998 (Statistics in Medicine 17:857), table I: the score method without correction.
@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(correct: int, n: int, low: float, high: float) -> None:
    interval = wilson_interval(correct, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_wilson_agrees_with_statsmodels(level: float) -> None:
    for correct, n in [(0, 1), (1, 3), (7, 10), (20, 20), (999, 1000), (3.5, 12.25)]:
        expected = proportion_confint(correct, n, alpha=1 - level, method="wilson")
        assert wilson_interval(correct, n, level) == pytest.approx(expected, abs=1e-12)


def test_wilson_reaches_the_ends_and_refuses_nonsense() -> None:
    assert wilson_interval(20, 20).high == 1.0
    assert wilson_interval(0, 7.5).low == 0.0
    assert wilson_interval(3, 10).low == pytest.approx(1 - wilson_interval(7, 10).high)
    for correct, n in [(3, 2), (-1, 2), (0, 0), (math.nan, 2)]:
        with pytest.raises(ValueError, match="is not a proportion"):
            wilson_interval(correct, n)
    with pytest.raises(ValueError, match="level 1"):
        wilson_interval(1, 2, level=1)


def test_mean_of_three_quarters_is_exactly_three_quarters() -> None:
    assert mean([1.0] * 75 + [0.0] * 25) == 0.75


def test_standard_error_of_a_proportion_and_of_one_value() -> None:
    # sample variance of 30 ones in 100: 0.21 * 100 / 99
    assert standard_error([1.0] * 30 + [0.0] * 70) == pytest.approx(math.sqrt(0.21 / 99))
    assert standard_error([1.0]) is None


def test_clustered_standard_error_agrees_with_statsmodels() -> None:
    rng = np.random.default_rng(3)
    owner = np.repeat(np.arange(len(UNEQUAL)), UNEQUAL)
    scores = rng.random(len(UNEQUAL))[owner] * rng.random(len(owner))
    options = {"groups": owner, "use_correction": True}
    fit = OLS(scores, np.ones(len(owner))).fit(cov_type="cluster", cov_kwds=options)
    assert clustered_standard_error(list(scores), list(owner)) == pytest.approx(
        float(fit.bse[0]), rel=1e-12
    )


def test_clusters_of_one_change_nothing_and_one_cluster_is_unknown() -> None:
    scores = [0.1, 0.5, 0.7, 0.2]
    assert clustered_standard_error(scores, range(4)) == pytest.approx(standard_error(scores))
    assert estimate(scores, range(4)) == estimate(scores)
    assert clustered_standard_error(scores, "aaaa") is None


def test_clustered_standard_error_by_hand() -> None:
    # mean 1/2, cluster residual sums 1, 0 and -1: sqrt(3/2 * 2) / 6
    assert clustered_standard_error([1, 1, 1, 0, 0, 0], "aabbcc") == pytest.approx(math.sqrt(3) / 6)


# One evaluation.


def test_estimate_of_binary_scores_is_wilson() -> None:
    result = estimate([1.0] * 15 + [0.0] * 5)
    assert (result.mean, result.method, result.n, result.num_clusters) == (0.75, "wilson", 20, None)
    assert result.interval == wilson_interval(15, 20)


def test_estimate_of_graded_scores_is_student_t() -> None:
    scores = [0.25, 0.5, 0.5, 0.75, 0.6]
    result = estimate(scores, level=0.9)
    expected = stats.ttest_1samp(scores, 0).confidence_interval(0.9)
    assert result.interval == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert (result.method, result.n) == ("student t", 5)
    clipped = estimate([1.0, 1.0, 0.9]).interval
    assert clipped is not None and clipped.high == 1.0


def test_estimate_of_clustered_binary_scores_uses_the_effective_number() -> None:
    scores, clusters = [1.0] * 12 + [0.0] * 4 + [1.0] * 4, "aaaabbbbccccddddeeee"
    result = estimate(scores, clusters)
    # Each cluster is all 0 or all 1: 5 independent ones of mean 0.8; residual sums 0.8 (4x), -3.2.
    variance = 5 / 4 * (4 * 0.8**2 + 3.2**2) / 20**2
    shrink = float(stats.t.ppf(0.975, 19) / stats.t.ppf(0.975, 4)) ** 2
    n_eff = 20 * (0.16 / 19) / variance * shrink
    assert result.stderr == pytest.approx(math.sqrt(variance))
    assert result.interval == pytest.approx(wilson_interval(0.8 * n_eff, n_eff), abs=1e-9)
    assert (result.method, result.n, result.num_clusters) == ("wilson, clustered", 20, 5)


def test_estimate_of_clustered_graded_scores_is_t_with_one_less_than_clusters() -> None:
    scores = [0.1, 0.2, 0.5, 0.7, 0.9, 0.8]
    result = estimate(scores, "aabbcc")
    assert result.stderr == clustered_standard_error(scores, "aabbcc")
    assert result.stderr is not None and result.interval is not None
    half = stats.t.ppf(0.975, 2) * result.stderr
    assert result.interval == pytest.approx((max(0, mean(scores) - half), 1.0), abs=1e-9)
    assert result.method == "student t, clustered"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_clusters_that_all_agree_count_as_one_question_each(value: float) -> None:
    result = estimate([value] * 20, [i // 4 for i in range(20)])
    assert result.interval == wilson_interval(5 * value, 5)


@pytest.mark.parametrize("scores", [[1.0], [0.0], [0.5]])
def test_one_question_or_one_cluster_is_unknown(scores: list[float]) -> None:
    assert estimate(scores) == (scores[0], None, None, "unknown", 1, None)
    assert estimate(scores * 9, ["a"] * 9) == (scores[0], None, None, "unknown", 9, 1)


def test_identical_graded_scores_are_not_certain() -> None:
    interval = estimate([0.5] * 4).interval
    share = wilson_interval(0, 4).high
    assert interval == pytest.approx((0.5 - share / 2, 0.5 + share / 2))


def test_estimate_refuses_what_is_no_score() -> None:
    for scores in ([], [1.5, 0.0], [math.nan]):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            estimate(scores)


# Several tasks.


def test_combine_adds_each_sides_distances_in_squares() -> None:
    combined = combine([0.5, 0.9], [Interval(0.4, 0.7), Interval(0.6, 0.95)])
    expected = (0.7 - math.hypot(0.1, 0.3) / 2, 0.7 + math.hypot(0.2, 0.05) / 2)
    assert combined == pytest.approx(expected)
    assert combine([0.5], [Interval(0.4, 0.7)]) == (0.4, 0.7)
    assert combine([0.5, 0.9], [Interval(0.4, 0.7), None]) is None
    wide = [Interval(-1.0, 0.9)] * 2
    assert combine([0.0, 0.0], wide) == pytest.approx((0.0, 0.9 / math.sqrt(2)))
    assert combine([0.0, 0.0], wide, DIFFERENCE) == pytest.approx(
        (-1 / math.sqrt(2), 0.9 / math.sqrt(2))
    )


def test_combined_stderr() -> None:
    assert combined_stderr([0.03, 0.04]) == pytest.approx(0.025)
    assert combined_stderr([0.03, None]) is None


def test_combined_interval_covers_the_mean_of_two_unequal_tasks() -> None:
    rng, covered, num_runs = np.random.default_rng(4), 0, 2000
    small = [wilson_interval(k, 20) for k in range(21)]
    large = [wilson_interval(k, 100) for k in range(101)]
    for a, b in zip(rng.binomial(20, 0.9, num_runs), rng.binomial(100, 0.6, num_runs), strict=True):
        interval = combine([a / 20, b / 100], [small[a], large[b]])
        assert interval is not None
        covered += interval.low <= 0.75 <= interval.high
    assert 0.935 <= covered / num_runs <= 0.98


# Two evaluations of the same questions.


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (3, 3), (1, 0), (9, 2), (2, 9), (121, 59)])
def test_mcnemar_agrees_with_statsmodels(better: int, worse: int) -> None:
    expected = vars(mcnemar([[5, better], [worse, 5]], exact=True))["pvalue"]
    assert mcnemar_exact(better, worse) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand() -> None:
    assert mcnemar_exact(5, 0) == pytest.approx(2 / 32)
    assert mcnemar_exact(1, 5) == pytest.approx(2 * 7 / 64)
    with pytest.raises(ValueError, match="are not counts"):
        mcnemar_exact(-1, 2)


def test_paired_binary_scores() -> None:
    after, before = outcomes(9, 2, 50)
    result = paired_difference(after, before)
    assert (result.method, result.n) == ("exact McNemar", 50)
    assert result.mean == pytest.approx(0.14)
    assert result.p_value == pytest.approx(mcnemar_exact(9, 2))
    # Bonett and Price 2012 by hand: (10 - 3) / 52 +/- 1.96 sqrt((13/52 - (7/52)^2) / 52)
    half = stats.norm.ppf(0.975) * math.sqrt((13 / 52 - (7 / 52) ** 2) / 52)
    assert result.interval == pytest.approx((7 / 52 - half, 7 / 52 + half), abs=1e-9)


def test_bonett_price_on_a_published_table() -> None:
    # Airway data of Fagerland, Lydersen and Laake 2014, table V: 1 and 7 changed of 21;
    # by hand -6/23 +/- 1.96 sqrt((10/23 - (6/23)^2) / 23).
    interval = paired_difference(*outcomes(1, 7, 21)).interval
    assert interval is not None
    assert (round(interval.low, 3), round(interval.high, 3)) == (-0.508, -0.013)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_repeated_or_graded_pairs_agree_with_scipys_paired_t(level: float) -> None:
    rng = np.random.default_rng(5)
    after, before = rng.integers(0, 2, 40), rng.integers(0, 2, 40)
    for scale in (1.0, 0.8):
        expected = stats.ttest_rel(after * scale, before * scale)
        result = paired_difference(
            by_id(after * scale), by_id(before * scale), is_repeated=True, level=level
        )
        low, high = expected.confidence_interval(level)
        assert result.method == "paired t"
        assert result.p_value == pytest.approx(float(expected.pvalue), rel=1e-9)
        assert result.interval == pytest.approx((low, high), abs=1e-9)


def test_only_shared_questions_count() -> None:
    after = {"a": 1.0, "b": 1.0, "c": 0.0, "new": 0.0}
    before = {"b": 0.0, "a": 1.0, "c": 0.0, "old": 1.0}
    result = paired_difference(after, before)
    assert (result.n, result.mean) == (3, pytest.approx(1 / 3))
    with pytest.raises(ValueError, match="no question is in both"):
        paired_difference({"a": 1.0}, {"b": 1.0})


def test_one_pair_or_one_cluster_of_pairs_is_unknown() -> None:
    assert paired_difference({"a": 1.0}, {"a": 0.0}) == (1.0, None, None, None, "unknown", 1)
    after, before = outcomes(2, 1, 9)
    result = paired_difference(after, before, dict.fromkeys(after, "same"))
    assert result[1:] == (None, None, None, "unknown", 9)


def test_identical_differences_do_not_claim_certainty() -> None:
    same = by_id([0.25, 0.5, 0.75])
    result = paired_difference(same, same)
    share = wilson_interval(0, 3).high
    assert (result.mean, result.p_value, result.method) == (0.0, 1.0, "paired t")
    assert result.interval == pytest.approx((-share, share))
    up = paired_difference({k: v + 0.25 for k, v in same.items()}, same)
    assert up.p_value == pytest.approx(2 / 8)  # the sign test of 3 of 3
    assert up.interval == pytest.approx((0.25 - share * 1.25, 0.25 + share * 0.75))
    clusters = dict(zip(same, "aab", strict=True))
    assert paired_difference(same, same, clusters).p_value == 1.0


def test_cluster_bootstrap_is_deterministic_and_ends_agree_with_its_p() -> None:
    rng, sizes = np.random.default_rng(6), [5] * 12
    for _ in range(20):
        after, before = split(copied(rng, sizes, 0.5, "changes") * 0.5 + 0.12)
        result = paired_difference(after, before, cluster_names(sizes))
        assert result == paired_difference(after, before, cluster_names(sizes))
        assert result.method == "cluster bootstrap"
        assert result.interval is not None and result.p_value is not None
        excludes_zero = result.interval.low > 0 or result.interval.high < 0
        assert excludes_zero == (result.p_value <= 0.05)


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5])
def test_levels_outside_zero_to_one_are_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        estimate([0.1, 0.9], level=level)
    with pytest.raises(ValueError, match="level"):
        paired_difference({"a": 0.5, "b": 1.0}, {"a": 0.0, "b": 0.0}, level=level)


# How large an evaluation, and how often does a rule stop wrongly.


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    # by hand: ((1.6449 sqrt(p0 q0) + 0.8416 sqrt(p1 q1)) / (p1 - p0))^2, rounded up
    [(0.8, 0.85, 368), (0.5, 0.6, 153), (0.75, 0.9, 42), (0.0, 1.0, 1)],
)
def test_questions_needed(low: float, high: float, expected: int) -> None:
    assert questions_needed(low, high) == expected


def test_smallest_difference_inverts_questions_needed() -> None:
    for n, score in [(50, 0.5), (100, 0.85), (1000, 0.99), (400, 1.0)]:
        drop = smallest_difference(n, score)
        assert drop is not None
        assert questions_needed(score - drop, score) == n
    assert smallest_difference(1, 0.1) is None
    with pytest.raises(ValueError, match="cannot tell"):
        questions_needed(0.8, 0.8)


def test_questions_needed_give_wilsons_lower_bound_its_power_and_level() -> None:
    for low, high in [(0.5, 0.6), (0.8, 0.85), (0.75, 0.8)]:
        n = questions_needed(low, high)
        assert false_stop_risk("lower_bound", n, low, high, 1) == pytest.approx(0.8, abs=0.04)
        assert false_stop_risk("lower_bound", n, low, low, 1) == pytest.approx(0.05, abs=0.01)


# True score 0.80, threshold 0.85, three looks.
@pytest.mark.parametrize(
    ("n", "by_mean", "by_bound"), [(20, 0.796, 0.035), (100, 0.338, 0.007), (400, 0.018, 0.001)]
)
def test_false_stop_risk_is_exact(n: int, by_mean: float, by_bound: float) -> None:
    risk = false_stop_risk("mean", n, 0.85, 0.8, 3)
    assert round(risk, 3) == by_mean
    one = stats.binom.sf(math.ceil(0.85 * n - 1e-9) - 1, n, 0.8)
    assert risk == pytest.approx(1 - (1 - one) ** 3, rel=1e-9)
    assert false_stop_risk("lower_bound", n, 0.85, 0.8, 3) <= by_bound


@pytest.mark.parametrize("rule", ["mean", "lower_bound"])
def test_false_stop_risk_agrees_with_simulation(rule: StopRule) -> None:
    n, threshold, true, looks, num_runs = 50, 0.7, 0.68, 3, 200_000
    risk = false_stop_risk(rule, n, threshold, true, looks)
    level = 1 - 2 * 0.05 / looks
    lower = np.array([wilson_interval(k, n, level).low for k in range(n + 1)])
    passes = np.arange(n + 1) / n >= threshold if rule == "mean" else lower >= threshold
    counts = np.random.default_rng(7).binomial(n, true, size=(num_runs, looks))
    stopped = passes[counts].any(axis=1).mean()
    assert abs(stopped - risk) < 4 * math.sqrt(risk * (1 - risk) / num_runs)


def test_false_stop_risk_of_large_and_extreme_evaluations() -> None:
    started = time.perf_counter()
    n = 100_000
    expected = stats.binom.sf(80_099, n, 0.8)
    assert false_stop_risk("mean", n, 0.801, 0.8, 1) == pytest.approx(expected, rel=1e-8)
    bound = false_stop_risk("lower_bound", n, 0.8, 0.8, 3)
    assert bound == pytest.approx(0.05, abs=0.002)
    assert time.perf_counter() - started < 0.2
    assert false_stop_risk("mean", 20, 0.85, 1.0, 3) == 1.0
    assert false_stop_risk("mean", 20, 0.85, 0.0, 3) == 0.0
    assert false_stop_risk("lower_bound", 3, 1.0, 0.9, 3) == 0.0


def test_false_stop_risk_normal_is_close_to_the_binomial() -> None:
    n = 10_000
    stderr = math.sqrt(0.8 * 0.2 / n)
    cells: list[tuple[StopRule, float]] = [("mean", 0.805), ("lower_bound", 0.8)]
    for rule, threshold in cells:
        exact = false_stop_risk(rule, n, threshold, 0.8, 3)
        assert false_stop_risk_normal(rule, stderr, threshold, 0.8, 3) == pytest.approx(
            exact, rel=0.05
        )


# Levels: exact where they can be enumerated, otherwise simulated with a fixed seed.


def test_wilson_holds_its_level() -> None:
    cells = {n: wilson_coverage(n) for n in (10, 20, 50, 99, 100, 200, 500, 1000)}
    assert 0.94 <= np.mean(list(cells.values())) <= 0.96
    for n, coverage in cells.items():
        low, high = (0.90, 0.99) if n < 100 else (0.93, 0.97)
        assert low <= coverage.min() and coverage.max() <= high, n


def test_student_t_holds_its_level_on_normal_scores() -> None:
    rng, num_runs = np.random.default_rng(8), 2000
    for n in (5, 30):
        covered = 0
        for scores in rng.normal(0.5, 0.1, size=(num_runs, n)).clip(0, 1):
            interval = estimate(list(scores)).interval
            assert interval is not None
            covered += interval.low <= 0.5 <= interval.high
        assert covered / num_runs == pytest.approx(0.95, abs=0.015)


def test_student_t_fails_on_few_binary_scores_where_wilson_does_not() -> None:
    n, true = 20, 0.95
    by_t = by_wilson = 0.0
    for k in range(n + 1):
        scores, chance = [1.0] * k + [0.0] * (n - k), float(stats.binom.pmf(k, n, true))
        stderr, wilson = standard_error(scores), estimate(scores).interval
        assert stderr is not None and wilson is not None
        half = student_t_quantile(0.975, n - 1) * stderr
        by_t += chance * (k / n - half <= true <= k / n + half)
        by_wilson += chance * (wilson.low <= true <= wilson.high)
    assert by_t < 0.70
    assert by_wilson > 0.90


@pytest.mark.parametrize("changed", [0.1, 0.3])
def test_paired_binary_test_and_interval_hold_their_level(changed: float) -> None:
    """Exact, over every table of 40 questions of which a share changes, without and with a gain."""
    n = 40
    for gain in (0.0, 0.08):
        up, down = (changed + gain) / 2, (changed - gain) / 2
        rejected = covered = 0.0
        for better in range(n + 1):
            for worse in range(n + 1 - better):
                stay = n - better - worse
                chance = multinomial(better, worse, stay, up, down)
                if chance < 1e-9:
                    continue
                result = paired_difference(*outcomes(better, worse, n))
                assert result.p_value is not None and result.interval is not None
                rejected += chance * (result.p_value <= 0.05)
                covered += chance * (result.interval.low <= gain <= result.interval.high)
        assert 0.93 <= covered <= 0.995
        assert gain > 0 or rejected <= 0.05


def multinomial(better: int, worse: int, stay: int, up: float, down: float) -> float:
    ways = math.comb(better + worse + stay, better) * math.comb(worse + stay, worse)
    return ways * up**better * down**worse * (1 - up - down) ** stay


@pytest.mark.parametrize(
    ("sizes", "icc", "kind", "most"),
    [
        ((10,) * 50, 0.7, "changes", 0.085),
        ((10,) * 10, 0.7, "normal", 0.085),
        (UNEQUAL, 0.7, "normal", 0.095),
        (UNEQUAL, 0.1, "changes", 0.085),
    ],
)
def test_cluster_bootstrap_holds_its_level(
    sizes: Sequence[int], icc: float, kind: str, most: float
) -> None:
    """Level 0.05 with 300 runs: three standard errors are 0.038."""
    rng, names, num_runs = np.random.default_rng(9), cluster_names(sizes), 300
    rejected = naive = 0
    for _ in range(num_runs):
        after, before = split(copied(rng, sizes, icc, kind))
        ours = paired_difference(after, before, names).p_value
        plain = paired_difference(after, before, is_repeated=True).p_value
        assert ours is not None and plain is not None
        rejected += ours <= 0.05
        naive += plain <= 0.05
    assert rejected / num_runs <= most
    if icc == 0.7:
        assert naive / num_runs > 0.30


@pytest.mark.parametrize("true", [0.5, 0.8])
def test_clustered_estimate_holds_its_level_with_fifty_clusters(true: float) -> None:
    rng, owner, num_runs = np.random.default_rng(10), np.repeat(np.arange(50), 10), 500
    covered = naive = 0
    for _ in range(num_runs):
        shared, own = (rng.random(50) < true)[owner], rng.random(500) < true
        scores = np.where(rng.random(500) < math.sqrt(0.7), shared, own).astype(float).tolist()
        interval, plain = estimate(scores, owner.tolist()).interval, estimate(scores).interval
        assert interval is not None and plain is not None
        covered += interval.low <= true <= interval.high
        naive += plain.low <= true <= plain.high
    assert covered / num_runs == pytest.approx(0.95, abs=0.03)
    assert naive / num_runs < 0.65


def test_batch_loss_by_hand() -> None:
    logprobs = [np.array([-1.0, -2.0, -9.0]), np.array([-4.0])]
    weights = [np.array([0.5, 0.5, 0.0]), np.array([1.0])]
    assert batch_loss(logprobs, weights, total_weight=2) == pytest.approx((2.75, 7 / 3))


# --- what a gate relies on ------------------------------------------------------------------------

LOOK = 1 - 2 * 0.05 / 3  # the one-sided level of one of three looks


@pytest.mark.parametrize("n", [2, 20, 400])
def test_a_gates_interval_of_right_and_wrong_answers_is_wilsons(n: int) -> None:
    for num_right in (0, 1, n // 2, n):
        scores = [1.0] * num_right + [0.0] * (n - num_right)
        assert gate_interval(scores, None, LOOK) == wilson_interval(num_right, n, LOOK)


def test_a_gates_interval_is_unknown_for_one_question_or_one_cluster() -> None:
    assert gate_interval([1.0], None, LOOK) is None
    assert gate_interval([1.0, 0.5, 1.0], ["a"] * 3, LOOK) is None
    assert gate_difference({"a": 1.0}, {"a": 0.0}, None, LOOK) is None
    assert gate_difference({"a": 1, "b": 1}, {"a": 0, "b": 0}, {"a": "c", "b": "c"}, LOOK) is None


def test_a_lower_score_never_has_a_higher_bound() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        n = int(rng.integers(2, 60))
        scores = [
            rng.choice([0, 0.9, 1], n, p=[0.1, 0.2, 0.7]),
            rng.random(n),
            rng.normal(0.95, 0.05, n).clip(0, 1),
            rng.integers(0, 2, n).astype(float),
        ][rng.integers(4)].tolist()
        lowered = list(scores)
        at = int(rng.integers(n))
        lowered[at] *= float(rng.random() * rng.integers(0, 2))
        before, after = (gate_interval(one, None, LOOK) for one in (scores, lowered))
        assert before is not None and after is not None
        assert after.low <= before.low + 1e-12
        base = {str(i): 0.0 for i in range(n)}
        gains = [
            gate_difference({str(i): one for i, one in enumerate(values)}, base, None, LOOK)
            for values in (scores, lowered)
        ]
        assert gains[0] is not None and gains[1] is not None
        assert gains[1].low <= max(0.0, gains[0].low) + 1e-12  # no surer that there is a gain


@pytest.mark.parametrize(
    ("kind", "true"),
    [("0, 0.9 or 1", 0.85), ("four repeats", 0.856), ("normal", 0.7), ("clusters", 0.9)],
)
@pytest.mark.parametrize("n", [10, 20, 50])
def test_a_gates_bound_keeps_its_level_where_students_t_does_not(
    kind: str, true: float, n: int
) -> None:
    """The bound is above the true mean in at most 1/60 of evaluations, and a little for chance."""
    rng, num_runs, errors = np.random.default_rng(n), 1500, 0
    clusters = [i // 5 for i in range(5 * n)] if kind == "clusters" else None
    for _ in range(num_runs):
        if kind == "0, 0.9 or 1":
            scores = rng.choice([0, 0.9, 1], n, p=[0.13, 0.2, 0.67])
        elif kind == "four repeats":
            scores = rng.binomial(4, true, n) / 4
        elif kind == "normal":
            scores = rng.normal(true, 0.1, n).clip(0, 1)
        else:  # strongly correlated within clusters of five
            shared, own = np.repeat(rng.random(n) < true, 5), rng.random(5 * n) < true
            scores = np.where(rng.random(5 * n) < 0.84, shared, own).astype(float)
        interval = gate_interval(scores.tolist(), clusters, LOOK)
        assert interval is not None
        errors += interval.low > true
    assert errors <= num_runs / 60 + 3 * math.sqrt(num_runs / 60)


@pytest.mark.parametrize("n", [3, 5, 10, 20, 50])
@pytest.mark.parametrize(("up", "down"), [(0.15, 0.15), (0.05, 0.05), (0.1, 0.02), (0.3, 0.1)])
def test_a_gates_paired_bound_keeps_its_level_exactly(n: int, up: float, down: float) -> None:
    """Over all tables of n right and wrong answers, before and after."""
    level, chance_of_error = 0.9, 0.0
    for better in range(n + 1):
        for worse in range(n + 1 - better):
            after = {str(i): float(i < better) for i in range(n)}
            before = {str(i): float(better <= i < better + worse) for i in range(n)}
            interval = gate_difference(after, before, None, level)
            assert interval is not None
            if interval.low > up - down:
                ways = math.comb(n, better) * math.comb(n - better, worse)
                stay = (1 - up - down) ** (n - better - worse)
                chance_of_error += ways * up**better * down**worse * stay
    assert chance_of_error <= 0.05


def test_clusters_that_nearly_all_change_alike_are_no_chance() -> None:
    """Many resamples of them have no spread, and a bootstrap would call that unknown."""
    names = {str(i): str(i % 520) for i in range(650)}
    before, after = dict.fromkeys(names, 0.0), dict.fromkeys(names, 1.0) | {"0": 0.0, "7": 0.0}
    found = paired_difference(after, before, names)
    assert found.p_value is not None and found.p_value < 1e-100
    few = {str(i): str(i // 2) for i in range(8)}  # four clusters, one of which did not change
    better = {one: float(name != "0") for one, name in few.items()}
    found = paired_difference(better, dict.fromkeys(few, 0.0), few)
    assert found.p_value == pytest.approx(2 * 0.5**3)
