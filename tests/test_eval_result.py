"""The records of an evaluation: what they sum up, and that they survive their file form."""

import pytest

from scores.results import (
    EvalResult,
    Measured,
    SampleResult,
    eval_result,
    task_result,
    topic_scores,
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


def test_every_sample_counts_also_the_failed_ones() -> None:
    samples = [sample(1, 1.0), sample(2, 0.0), sample(3, 0.0, error="boom"), sample(5, 1.0)]
    result = eval_result(
        1, "tinker://x", Measured((task_result("t", samples),)), {"temperature": 0}
    )
    assert (result.score, result.n) == (0.5, 4)
    assert (result.num_failed, result.num_truncated, result.num_malformed) == (1, 1, 0)


def test_score_is_the_plain_mean_of_task_means() -> None:
    small = task_result("small", [sample(i, 1.0) for i in range(2)])
    large = task_result("large", [sample(i, float(i < 25)) for i in range(100)])
    result = eval_result(1, None, Measured((small, large)), {})
    assert result.score == pytest.approx((1.0 + 0.25) / 2)
    assert large.stderr is not None
    assert result.stderr == pytest.approx(large.stderr / 2)


def test_one_sample_has_no_known_uncertainty() -> None:
    task = task_result("t", [sample(1, 0.5)])
    assert (task.stderr, task.interval) == (None, None)


def test_result_survives_its_file_form() -> None:
    result = eval_result(
        2, "tinker://x", Measured((task_result("t", [sample(1, 1.0), sample(2, 0.0)]),)), {}
    )
    assert EvalResult.from_json(result.to_json()) == result


def test_protocol_hash_follows_the_protocol() -> None:
    tasks = Measured((task_result("t", [sample(1, 1.0)]),))
    cold, warm = (eval_result(1, None, tasks, {"temperature": t}) for t in (0, 1))
    assert cold.protocol_hash != warm.protocol_hash


def test_topics_count_questions_and_failures() -> None:
    samples = [sample(1, 1.0), sample(2, 0.0), sample(3, 0.25, "b"), sample(4, 0.0, None)]
    assert topic_scores(samples) == {"a": (2, 1.0), "b": (1, 0.75)}
