"""The records of an evaluation: samples, tasks, held-out losses, and the score that they come to.

The score is the plain mean of the means of the tasks that enter it; a task's mean is the plain mean
over its questions of their mean over repeats, and every sample counts, whether it was truncated,
malformed or failed. Guards, benchmarks beside an application task, and held-out losses are reported
with it and never averaged in. Pure: values in, values out. Nothing here decides anything.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from scores.intervals import (
    DIFFERENCE,
    Estimate,
    Interval,
    PairedDifference,
    combine,
    combined_stderr,
    estimate,
    gate_difference,
    gate_interval,
    mean,
    paired_difference,
)
from storage.stored_json import Count, Measure, Share, record_of

SAME_SCORE = 1e-12  # scores that are nearer than this are equal
LEVEL = 0.95  # of every interval that is shown or stored
Role = Literal["score", "guard", "report"]


@dataclass(frozen=True)
class SampleResult:
    """One question asked once. `score` is in [0, 1]: 0 where an `error` left no answer.

    `id` is the task's name and the question's id; the repeats of a question share it.
    `other_scores` are what other scorers of the task said, which counts nowhere.
    """

    id: str
    topic: str | None
    question: str
    expected: tuple[str, ...]
    answer: str | None
    score: Share
    truncated: bool
    malformed: bool
    error: str | None
    repeat: int = 1
    cluster: str | None = None
    num_prompt_tokens: int = 0
    num_sampled_tokens: int = 0
    other_scores: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskResult:
    """One task on one checkpoint. `stderr` and `interval` are None where n is too small to know."""

    name: str
    layer: int
    role: Role
    score: Share
    stderr: Measure | None
    interval: Interval | None
    method: str  # of the interval
    n: int  # questions
    num_repeats: int
    num_clusters: int | None
    num_truncated: int  # samples, as the next two
    num_malformed: int
    num_failed: int
    metrics: dict[str, float]  # the task's own, as its evaluator reports them
    log: str | None  # the Inspect log, relative to the run directory
    samples: tuple[SampleResult, ...]
    max_tokens: int | None = None  # of an answer, as asked for; None where it was not recorded

    @cached_property
    def scores(self) -> dict[str, float]:
        """Question id -> its mean score over repeats."""
        return _by_question(self.samples)

    @cached_property
    def clusters(self) -> dict[str, str] | None:
        return _clusters(self.samples)

    def called(self, name: str, layer: int, role: Role) -> TaskResult:
        """The same under the name, the layer and the role that another run knows the task by."""
        samples = (
            replace(one, id=f"{name}/{one.id.removeprefix(f'{self.name}/')}")
            for one in self.samples
        )
        return replace(self, name=name, layer=layer, role=role, samples=tuple(samples))

    @property
    def num_flawed(self) -> int:
        return self.num_truncated + self.num_malformed

    @property
    def flawed_share(self) -> float:
        return self.num_flawed / len(self.samples)

    def gate_interval(self, level: float) -> Interval | None:
        """The interval of the mean that a gate may rely on."""
        scores, clusters = self.scores, self.clusters
        names = None if clusters is None else [clusters[question] for question in scores]
        return gate_interval(list(scores.values()), names, level)


@dataclass(frozen=True)
class HeldOutRow:
    """The loss of one held-out conversation: natural logarithms, summed over its loss tokens.

    `text_nll_sum` is over those of them that hold the answers' own text, and `num_loss_bytes` are
    the bytes of these; None in records of before that was told apart.
    """

    id: str
    topic: str | None
    nll_sum: Measure
    num_loss_tokens: Annotated[int, Field(ge=1)]
    num_loss_bytes: Count
    text_nll_sum: Measure | None = None


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss on held-out conversations: `nll` in nats per loss token, perplexity is exp(nll).

    `bits_per_byte` is over the answers' own text alone, the same for every chat format; None where
    no row has any.
    """

    name: str
    nll: Measure
    stderr: Measure | None
    perplexity: float
    bits_per_byte: float | None
    n: int  # conversations
    num_loss_tokens: int
    num_prompt_tokens: int
    rows: tuple[HeldOutRow, ...]
    num_sampled_tokens: int = 0  # that came with them; versions before counted none


@dataclass(frozen=True)
class EvalResult:
    """Everything measured on one checkpoint in one round. Counts are over the scored tasks."""

    round: int
    checkpoint: str | None  # sampler path; None is the untouched base model
    score: Share
    stderr: Measure | None
    interval: Interval | None
    n: int
    num_samples: int
    num_truncated: int
    num_malformed: int
    num_failed: int
    protocol: dict[str, Any]
    protocol_hash: str
    tasks: tuple[TaskResult, ...]
    held_out: tuple[HeldOutLoss, ...]

    @property
    def scored_tasks(self) -> tuple[TaskResult, ...]:
        return tuple(task for task in self.tasks if task.role == "score")

    @property
    def samples(self) -> tuple[SampleResult, ...]:
        """The samples of the tasks that enter the score."""
        return tuple(sample for task in self.scored_tasks for sample in task.samples)

    @property
    def names(self) -> frozenset[str]:
        """The tasks that have been measured."""
        return frozenset(one.name for one in (*self.tasks, *self.held_out))

    @property
    def sample_ids(self) -> dict[str, frozenset[str]]:
        """What each task has asked."""
        return Measured(self.tasks, self.held_out).sample_ids

    def task(self, name: str) -> TaskResult | None:
        return next((task for task in self.tasks if task.name == name), None)

    def gate_interval(self, level: float) -> Interval | None:
        """The interval of the score that a gate may rely on; None where a task's is unknown."""
        scored = self.scored_tasks
        return combine([task.score for task in scored], [t.gate_interval(level) for t in scored])

    def to_json(self) -> dict[str, Any]:
        """The form kept in evals/round_NN.json; `samples` stand once, inside their tasks."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvalResult:
        """Raises `ValueError` for what `to_json` does not give."""
        result = record_of(cls, data)
        _refuse_impossible(result.tasks, result.held_out)
        if not result.scored_tasks:
            raise ValueError("no task enters the score")
        return result


class Measured(NamedTuple):
    """What has been measured of one checkpoint so far."""

    tasks: tuple[TaskResult, ...] = ()
    held_out: tuple[HeldOutLoss, ...] = ()

    def __add__(self, other: object) -> Measured:
        assert isinstance(other, Measured)
        return Measured(self.tasks + other.tasks, self.held_out + other.held_out)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(one.name for one in (*self.tasks, *self.held_out))

    @property
    def sample_ids(self) -> dict[str, frozenset[str]]:
        """What each task has asked, and the rows of each held-out loss."""
        asked = {task.name: frozenset(one.id for one in task.samples) for task in self.tasks}
        return asked | {loss.name: frozenset(r.id for r in loss.rows) for loss in self.held_out}

    def only(self, names: Collection[str]) -> Measured:
        """The tasks and held-out losses of these names."""
        return Measured(
            tuple(task for task in self.tasks if task.name in names),
            tuple(loss for loss in self.held_out if loss.name in names),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "tasks": [asdict(task) for task in self.tasks],
            "held_out": [asdict(loss) for loss in self.held_out],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measured:
        """Raises `ValueError` for what `to_json` does not give."""
        fields = {"tasks": data.get("tasks"), "held_out": data.get("held_out")}
        measured = record_of(cls, fields)
        _refuse_impossible(measured.tasks, measured.held_out)
        return measured


def _refuse_impossible(tasks: Sequence[TaskResult], held_out: Sequence[HeldOutLoss]) -> None:
    """Raise `ValueError` for what arithmetic takes for granted and a shape does not say."""
    for task in tasks:
        if not task.samples:
            raise ValueError(f"{task.name} has no samples")
    if not all(loss.rows for loss in held_out):
        raise ValueError("a held-out loss has no rows")
    names = [one.name for one in (*tasks, *held_out)]
    if len(set(names)) < len(names):
        raise ValueError("a task is there twice")


# --- from samples to a score ----------------------------------------------------------------------


def task_result(
    name: str,
    samples: Sequence[SampleResult],
    *,
    layer: int = 3,
    role: Role = "score",
    metrics: Mapping[str, float] | None = None,
    log: str | None = None,
) -> TaskResult:
    """Summarise the samples of one task. At least one sample."""
    assert samples, "a task without samples has no score"
    summary = _estimate(samples, LEVEL)
    return TaskResult(
        name=name,
        layer=layer,
        role=role,
        score=summary.mean,
        stderr=summary.stderr,
        interval=summary.interval,
        method=summary.method,
        n=summary.n,
        num_repeats=max(sample.repeat for sample in samples),
        num_clusters=summary.num_clusters,
        num_truncated=sum(sample.truncated for sample in samples),
        num_malformed=sum(sample.malformed for sample in samples),
        num_failed=sum(sample.error is not None for sample in samples),
        metrics=dict(metrics or {}),
        log=log,
        samples=tuple(samples),
    )


def held_out_loss(
    name: str, rows: Sequence[HeldOutRow], num_prompt_tokens: int, num_sampled_tokens: int = 0
) -> HeldOutLoss:
    """Summarise held-out conversations. At least one, each with at least one loss token."""
    num_tokens = sum(row.num_loss_tokens for row in rows)
    texts = [(row.text_nll_sum, row.num_loss_bytes) for row in rows if row.text_nll_sum is not None]
    num_bytes = sum(number for _, number in texts)
    text_bits = math.fsum(nats for nats, _ in texts) / math.log(2)
    nll_sum = math.fsum(row.nll_sum for row in rows)
    nll = nll_sum / num_tokens
    return HeldOutLoss(
        name=name,
        nll=nll,
        stderr=_ratio_stderr(rows, nll, num_tokens),
        perplexity=math.exp(min(nll, 700.0)),
        bits_per_byte=text_bits / num_bytes if num_bytes else None,
        n=len(rows),
        num_loss_tokens=num_tokens,
        num_prompt_tokens=num_prompt_tokens,
        rows=tuple(rows),
        num_sampled_tokens=num_sampled_tokens,
    )


def _ratio_stderr(rows: Sequence[HeldOutRow], nll: float, num_tokens: int) -> float | None:
    """Standard error of a ratio of sums over conversations (Cochran 1977, eq. 2.39)."""
    n = len(rows)
    if n < 2:
        return None
    squares = math.fsum((row.nll_sum - nll * row.num_loss_tokens) ** 2 for row in rows)
    return math.sqrt(squares * n / (n - 1)) / num_tokens


def eval_result(
    round_number: int, checkpoint: str | None, measured: Measured, protocol: dict[str, Any]
) -> EvalResult:
    """Combine what was measured on one checkpoint. At least one task enters the score."""
    scored = [task for task in measured.tasks if task.role == "score"]
    assert scored, "an evaluation without a scored task has no score"
    return EvalResult(
        round=round_number,
        checkpoint=checkpoint,
        score=mean([task.score for task in scored]),
        stderr=combined_stderr([task.stderr for task in scored]),
        interval=combine([task.score for task in scored], [task.interval for task in scored]),
        n=sum(task.n for task in scored),
        num_samples=sum(len(task.samples) for task in scored),
        num_truncated=sum(task.num_truncated for task in scored),
        num_malformed=sum(task.num_malformed for task in scored),
        num_failed=sum(task.num_failed for task in scored),
        protocol=protocol,
        protocol_hash=protocol_hash(protocol),
        tasks=measured.tasks,
        held_out=measured.held_out,
    )


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """A short name for everything that changes a score; equal ones can be compared."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]


def _estimate(samples: Sequence[SampleResult], level: float) -> Estimate:
    scores, clusters = _by_question(samples), _clusters(samples)
    names = None if clusters is None else [clusters[question] for question in scores]
    return estimate(list(scores.values()), names, level)


def _by_question(samples: Sequence[SampleResult]) -> dict[str, float]:
    scores: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        scores[sample.id].append(sample.score)
    return {question: mean(values) for question, values in scores.items()}


def _clusters(samples: Sequence[SampleResult]) -> dict[str, str] | None:
    """Question id -> cluster; None where no two questions share one."""
    clusters = {sample.id: sample.cluster or sample.id for sample in samples}
    shared = any(number > 1 for number in Counter(clusters.values()).values())
    return clusters if shared else None


# --- two results side by side ---------------------------------------------------------------------


def task_difference(after: TaskResult, before: TaskResult, level: float) -> PairedDifference:
    """By how much a task's score moved, question by question."""
    return paired_difference(
        after.scores,
        before.scores,
        after.clusters,
        is_repeated=max(after.num_repeats, before.num_repeats) > 1,
        level=level,
    )


class Moved(NamedTuple):
    """A question that two evaluations of a task scored differently on; of repeats the first."""

    before: SampleResult
    after: SampleResult
    change: float  # of its score, a mean over repeats


def moved_questions(after: TaskResult, before: TaskResult) -> list[Moved]:
    """The questions that both were asked and whose score is another one, in their order before."""
    first, second = _first_asked(before), _first_asked(after)
    found = []
    for question, was in before.scores.items():
        change = after.scores.get(question, was) - was
        if abs(change) > SAME_SCORE:
            found.append(Moved(first[question], second[question], change))
    return found


def _first_asked(task: TaskResult) -> dict[str, SampleResult]:
    return {sample.id: sample for sample in reversed(task.samples)}


class ScoreDifference(NamedTuple):
    """By how much the score moved between two evaluations with the same questions."""

    mean: float
    interval: Interval | None
    p_value: float | None  # of the one task's test; None where several tasks are combined
    method: str


def score_difference(after: EvalResult, before: EvalResult, level: float) -> ScoreDifference:
    """By how much the score moved, each scored task paired question by question."""
    pairs = [(task, before.task(task.name)) for task in after.scored_tasks]
    moved = [task_difference(one, other, level) for one, other in pairs if other is not None]
    assert len(moved) == len(pairs), "two results of one run have the same scored tasks"
    interval = combine(
        [one.mean for one in moved], [one.interval for one in moved], bounds=DIFFERENCE
    )
    single = moved[0] if len(moved) == 1 else None
    return ScoreDifference(
        mean=mean([one.mean for one in moved]),
        interval=interval,
        p_value=None if single is None else single.p_value,
        method="combined over tasks" if single is None else single.method,
    )


class GateChange(NamedTuple):
    """By how much the score moved, with the interval that a gate may rely on."""

    mean: float
    interval: Interval | None


def gate_change(after: EvalResult, before: EvalResult, level: float) -> GateChange:
    """By how much the score moved between two evaluations of the same scored tasks."""
    pairs = [(task, before.task(task.name)) for task in after.scored_tasks]
    moved = [(one, other) for one, other in pairs if other is not None]
    assert len(moved) == len(pairs), "two results of one run have the same scored tasks"
    means = [one.score - other.score for one, other in moved]
    intervals = [
        gate_difference(one.scores, other.scores, one.clusters, level) for one, other in moved
    ]
    return GateChange(mean(means), combine(means, intervals, bounds=DIFFERENCE))


class TopicScore(NamedTuple):
    """What one topic's `n` questions came to. `num_failures` may be a fraction, as scores may."""

    n: int
    num_failures: float


def topic_scores(samples: Sequence[SampleResult]) -> dict[str, TopicScore]:
    """Count questions and failures per topic; those without a topic are left out. A question that
    was asked several times is one, with the mean of its scores."""
    scores: dict[str, list[float]] = defaultdict(list)
    topics = {sample.id: sample.topic for sample in samples}
    for question, score in _by_question(samples).items():
        if (topic := topics[question]) is not None:
            scores[topic].append(score)
    return {
        topic: TopicScore(len(values), math.fsum(1 - value for value in values))
        for topic, values in sorted(scores.items())
    }
