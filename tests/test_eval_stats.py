"""Scores and intervals against published and hand-computed values."""

import math

import pytest

from eval_stats import (
    EvalResult,
    SampleResult,
    eval_result,
    mean,
    standard_error,
    task_result,
    topic_scores,
    wilson_interval,
)


def sample(number: int, score: float, topic: str | None = "a", error: str | None = None):
    return SampleResult(
        id=f"t/{number}",
        topic=topic,
        question=f"q{number}",
        expected=("x",),
        answer=None if error else "y",
        score=score,
        truncated=number % 5 == 0,
        malformed=False,
        error=error,
    )


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


def test_wilson_is_symmetric_and_reaches_the_ends() -> None:
    assert wilson_interval(20, 20).high == 1.0
    assert wilson_interval(3, 10).low == pytest.approx(1 - wilson_interval(7, 10).high)
    with pytest.raises(ValueError, match="3 correct of 2"):
        wilson_interval(3, 2)


def test_wilson_covers_at_its_level_on_average() -> None:
    """Exact coverage, enumerated over the binomial, for n = 50 and true rates 0.05 to 0.95."""
    n, coverages = 50, []
    for true in (i / 20 for i in range(1, 20)):
        covered = 0.0
        for correct in range(n + 1):
            interval = wilson_interval(correct, n)
            if interval.low <= true <= interval.high:
                covered += math.comb(n, correct) * true**correct * (1 - true) ** (n - correct)
        coverages.append(covered)
    assert 0.94 <= mean(coverages) <= 0.96
    assert min(coverages) > 0.92


def test_mean_of_three_quarters_is_exactly_three_quarters() -> None:
    assert mean([1.0] * 75 + [0.0] * 25) == 0.75


def test_standard_error_of_a_proportion_and_of_one_value() -> None:
    # sample variance of 30 ones in 100: 0.21 * 100 / 99
    assert standard_error([1.0] * 30 + [0.0] * 70) == pytest.approx(math.sqrt(0.21 / 99))
    assert standard_error([1.0]) is None


def test_every_sample_counts_also_the_failed_ones() -> None:
    samples = [sample(1, 1.0), sample(2, 0.0), sample(3, 0.0, error="boom"), sample(5, 1.0)]
    result = eval_result(1, "tinker://x", [task_result("t", samples)], {"temperature": 0})
    assert (result.score, result.n) == (0.5, 4)
    assert (result.num_failed, result.num_truncated, result.num_malformed) == (1, 1, 0)


def test_score_is_the_plain_mean_of_task_means() -> None:
    small = task_result("small", [sample(i, 1.0) for i in range(2)])
    large = task_result("large", [sample(i, float(i < 25)) for i in range(100)])
    result = eval_result(1, None, [small, large], {})
    assert result.score == pytest.approx((1.0 + 0.25) / 2)
    assert large.stderr is not None
    assert result.stderr == pytest.approx(large.stderr / 2)


def test_one_sample_has_no_known_uncertainty() -> None:
    task = task_result("t", [sample(1, 0.5)])
    assert (task.stderr, task.interval) == (None, None)


def test_result_survives_its_file_form() -> None:
    result = eval_result(2, "tinker://x", [task_result("t", [sample(1, 1.0), sample(2, 0.0)])], {})
    assert EvalResult.from_json(result.to_json()) == result


def test_protocol_hash_follows_the_protocol() -> None:
    tasks = [task_result("t", [sample(1, 1.0)])]
    cold, warm = (eval_result(1, None, tasks, {"temperature": t}) for t in (0, 1))
    assert cold.protocol_hash != warm.protocol_hash


def test_topics_count_questions_and_failures() -> None:
    samples = [sample(1, 1.0), sample(2, 0.0), sample(3, 0.25, "b"), sample(4, 0.0, None)]
    assert topic_scores(samples) == {"a": (2, 1.0), "b": (1, 0.75)}
