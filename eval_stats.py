"""Scores with their uncertainty: the records of an evaluation, and the arithmetic on them.

The score of an evaluation is the plain mean of its tasks' means; a task's mean is the plain mean of
its samples' scores, and every sample counts, whether it was truncated, malformed or failed.
Pure: values in, values out. Nothing here decides anything.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Interval(NamedTuple):
    """A two-sided interval for a mean score, both ends in [0, 1]."""

    low: float
    high: float


@dataclass(frozen=True)
class SampleResult:
    """One question asked once. `score` is in [0, 1]: 0 where an `error` left no answer."""

    id: str
    topic: str | None
    question: str
    expected: tuple[str, ...]
    answer: str | None
    score: float
    truncated: bool
    malformed: bool
    error: str | None


@dataclass(frozen=True)
class TaskResult:
    """One task on one checkpoint. `stderr` and `interval` are None where n is too small to know."""

    name: str
    score: float
    stderr: float | None
    interval: Interval | None
    n: int
    samples: tuple[SampleResult, ...]


@dataclass(frozen=True)
class EvalResult:
    """Everything measured on one checkpoint in one round."""

    round: int
    checkpoint: str | None  # sampler path; None is the untouched base model
    score: float
    stderr: float | None
    interval: Interval | None
    n: int
    num_truncated: int
    num_malformed: int
    num_failed: int
    protocol: dict[str, Any]
    protocol_hash: str
    tasks: tuple[TaskResult, ...]

    @property
    def samples(self) -> tuple[SampleResult, ...]:
        return tuple(sample for task in self.tasks for sample in task.samples)

    def to_json(self) -> dict[str, Any]:
        """The form kept in evals/round_NN.json; `samples` stand once, inside their tasks."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EvalResult:
        tasks = tuple(
            TaskResult(
                **{
                    **task,
                    "interval": _interval(task["interval"]),
                    "samples": tuple(
                        SampleResult(**{**sample, "expected": tuple(sample["expected"])})
                        for sample in task["samples"]
                    ),
                }
            )
            for task in data["tasks"]
        )
        return cls(**{**data, "interval": _interval(data["interval"]), "tasks": tasks})


def _interval(value: Sequence[float] | None) -> Interval | None:
    return None if value is None else Interval(*value)


def task_result(name: str, samples: Sequence[SampleResult], level: float = 0.95) -> TaskResult:
    """Summarise the samples of one task. At least one sample."""
    scores_S = [sample.score for sample in samples]
    assert scores_S, "a task without samples has no score"
    stderr = standard_error(scores_S)
    if all(score in (0.0, 1.0) for score in scores_S):
        interval = wilson_interval(round(math.fsum(scores_S)), len(scores_S), level)
    else:
        interval = _normal_interval(mean(scores_S), stderr, level)
    return TaskResult(name, mean(scores_S), stderr, interval, len(scores_S), tuple(samples))


def eval_result(
    round_number: int,
    checkpoint: str | None,
    tasks: Sequence[TaskResult],
    protocol: dict[str, Any],
    level: float = 0.95,
) -> EvalResult:
    """Combine the tasks of one evaluation. With one task, its interval is the evaluation's."""
    score = mean([task.score for task in tasks])
    errors = [task.stderr for task in tasks]
    known = [error for error in errors if error is not None]
    # The tasks' samples are independent, so the variance of the mean of k means is sum(se^2) / k^2.
    stderr = math.hypot(*known) / len(tasks) if len(known) == len(tasks) else None
    interval = tasks[0].interval if len(tasks) == 1 else _normal_interval(score, stderr, level)
    samples = [sample for task in tasks for sample in task.samples]
    return EvalResult(
        round=round_number,
        checkpoint=checkpoint,
        score=score,
        stderr=stderr,
        interval=interval,
        n=len(samples),
        num_truncated=sum(sample.truncated for sample in samples),
        num_malformed=sum(sample.malformed for sample in samples),
        num_failed=sum(sample.error is not None for sample in samples),
        protocol=protocol,
        protocol_hash=hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[
            :16
        ],
        tasks=tuple(tasks),
    )


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


def wilson_interval(num_correct: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927, eq. 9; Brown, Cai and DasGupta 2001).

    Unlike mean +/- z * stderr it keeps its level near 0 and 1 and for small n.
    """
    if not 0 <= num_correct <= n or n < 1:
        raise ValueError(f"{num_correct} correct of {n} is not a proportion")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = num_correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the exact bound is 0 or 1; rounding must not leave it a hair inside.
    low = 0.0 if num_correct == 0 else centre - half
    high = 1.0 if num_correct == n else centre + half
    return Interval(low, high)


def _normal_interval(score: float, stderr: float | None, level: float) -> Interval | None:
    if stderr is None:
        return None
    half = NormalDist().inv_cdf(0.5 + level / 2) * stderr
    return Interval(max(0.0, score - half), min(1.0, score + half))


class BatchLoss(NamedTuple):
    """`loss` is the mean over examples of their mean per token, `nll` the mean over loss tokens."""

    loss: float
    nll: float


def batch_loss(logprobs: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> BatchLoss:
    """The loss of a batch whose examples' weights each sum to 1; one array per example."""
    pairs = list(zip(logprobs, weights, strict=True))
    loss = -math.fsum(float(w @ lp) for lp, w in pairs) / len(pairs)
    num_loss_tokens = sum(int((w > 0).sum()) for _, w in pairs)
    nll = -math.fsum(float(lp[w > 0].sum()) for lp, w in pairs) / num_loss_tokens
    return BatchLoss(loss, nll)


class TopicScore(NamedTuple):
    """What one topic's questions came to. `num_failures` may be a fraction, as scores may."""

    n: int
    num_failures: float


def topic_scores(samples: Sequence[SampleResult]) -> dict[str, TopicScore]:
    """Count questions and failures per topic; samples without a topic are left out."""
    scores: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        if sample.topic is not None:
            scores[sample.topic].append(sample.score)
    return {
        topic: TopicScore(len(values), math.fsum(1 - value for value in values))
        for topic, values in sorted(scores.items())
    }
