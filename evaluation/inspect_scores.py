"""What an Inspect log measured, as the records of samples that question files give as well.

What is wrong with one sample makes it a failed one, with its reason; only where no sample at all
can be read is it a mistake of the settings or of the scorer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from errors import ConfigError, EvalError
from evaluation.inspect_model import CUT_TURNS
from evaluation.inspect_tasks import InspectTask, first_line_of, last_user_text
from scores.results import SampleResult
from simple_eval import refuse_failures
from user_code.own_graders import settled_score

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.scorer import Score

BY_OPERATOR = ("operator", "custom")  # limits that cut no answer short
_BOOLEANS = ("yes", "true", "no", "false")


class InspectScores(NamedTuple):
    """What one task's log comes to."""

    samples: tuple[SampleResult, ...]
    metrics: dict[str, float]
    log: Path


class Grade(NamedTuple):
    """A sample's score, or why it has none. `remedy` is there where the scorer or the settings may
    be at fault, rather than the sample."""

    score: float = 0.0
    problem: str | None = None
    remedy: str | None = None


def scores_of(task: InspectTask, log: EvalLog) -> InspectScores:
    """Read what a log measured. Raises `EvalError` where it is not a complete evaluation, and
    `ConfigError` where no sample's score can be read as the settings have it.
    """
    scorer = _counting_scorer(task, log)
    grades = [_grade(task, scorer, sample) for sample in log.samples or []]
    if grades and all(grade.remedy is not None for grade in grades):
        raise ConfigError(
            f"{task.name}: sample {(log.samples or [])[0].id}: {grades[0].problem}, and so it is "
            f"with every sample. {grades[0].remedy}; then start a new run, or evaluate this run's "
            "checkpoints with --evaluate."
        )
    samples = tuple(
        _sample_result(task, scorer, sample, grade)
        for sample, grade in zip(log.samples or [], grades, strict=True)
    )
    refuse_failures(task.name, samples)
    if not _has_all_samples(log):
        found = log.error.message if log.error is not None else f"its status is {log.status}"
        raise EvalError(
            f"{task.name}: Inspect did not complete the task: {found}. The log is {log.location}."
        )
    metrics = {
        f"{score.name}/{name}": float(metric.value)
        for score in (log.results.scores if log.results is not None else [])
        for name, metric in score.metrics.items()
        if isinstance(metric.value, int | float) and math.isfinite(metric.value)
    }
    return InspectScores(samples, metrics, file_of(log))


def _has_all_samples(log: EvalLog) -> bool:
    """Whether a task was asked to its end. Inspect calls it failed as well where only its own
    metrics could not be computed, as where one sample's score has another form."""
    done = {(str(sample.id), sample.epoch) for sample in log.samples or []}
    repeats = range(1, (log.eval.config.epochs or 1) + 1)
    ids = log.eval.dataset.sample_ids or []
    is_whole = bool(ids) and all((str(one), epoch) in done for one in ids for epoch in repeats)
    return bool(done) and (log.status == "success" or is_whole)


def file_of(log: EvalLog) -> Path:
    return Path(log.location.removeprefix("file://"))


def _counting_scorer(task: InspectTask, log: EvalLog) -> str:
    """The name under which samples have the score that counts: of the scorer that the settings
    name, or of the first one of the log's header. A sample may lack it, or have another before."""
    scorers = [one.name.rpartition("/")[2] for one in log.eval.scorers or []]
    has_named = any(task.score_key in (sample.scores or {}) for sample in log.samples or [])
    if task.score_key is not None and (has_named or task.score_key in scorers):
        return task.score_key
    if scorers:
        return scorers[0]
    return next((name for one in log.samples or [] for name in one.scores or {}), "")


def _grade(task: InspectTask, scorer: str, sample: EvalSample) -> Grade:
    if sample.error is not None:
        return Grade(problem=first_line_of(sample.error.message))
    found = (sample.scores or {}).get(scorer)
    if found is None:
        return Grade(problem=f"the scorer gave no score{_by(scorer, sample)}")
    value, key = found.value, task.score_key
    if isinstance(value, dict):
        settings = f"evaluation.score_key = {{{json.dumps(task.name)}: ...}}"
        remedy = f"It gives {', '.join(value)}. Say which one counts: {settings}"
        if key is None or key == scorer:
            said = "its scorer gives several values and none is named"
            return Grade(problem=said, remedy=remedy)
        if key not in value:
            return Grade(problem=f"its scorer gives no value {key!r}", remedy=remedy)
        value = value[key]
    elif key not in (None, scorer) and _is_verdict(value):
        names = ", ".join(sample.scores or {})
        return Grade(
            problem=f"its scorer gives no value {key!r}",
            remedy=f"It gives {names}. Name one in evaluation.score_key, or none",
        )
    return _read(value, found)


def _by(scorer: str, sample: EvalSample) -> str:
    others = ", ".join(sample.scores or {})
    return f" ({scorer} left it out; there is one of {others})" if others else ""


def _is_verdict(value: Any) -> bool:
    """Whether a scorer came to any value; None and NaN are what graders give that find none."""
    return value is not None and value == value


def _read(value: Any, found: Score) -> Grade:
    """A scorer's value as a score."""
    if not _is_verdict(value):
        said = f"{found.reason}: {found.explanation}" if value is not None else "None"
        return Grade(problem=f"the scorer gave no score: {first_line_of(said)}")
    number = number_of(value)
    if number is None:
        return Grade(
            problem=f"the scorer gave no score: {first_line_of(repr(value))}",
            remedy="Use a scorer that gives numbers, or Inspect's own letters",
        )
    if (score := settled_score(number)) is None:
        return Grade(
            problem=f"it has the score {number!r}, and a score is between 0 and 1",
            remedy="Use a scorer that rates answers on that range",
        )
    return Grade(score)


def number_of(value: Any) -> float | None:
    """A scorer's value as a number; None for one that Inspect would count as 0 with a warning."""
    from inspect_ai.scorer import CORRECT, INCORRECT, NOANSWER, PARTIAL, value_to_float

    if isinstance(value, str):
        known = value in (CORRECT, INCORRECT, PARTIAL, NOANSWER) or value.lower() in _BOOLEANS
        if not known:
            try:
                float(value)
            except ValueError:
                return None
    elif not isinstance(value, int | float):
        return None
    number = float(value_to_float()(value))
    return number if math.isfinite(number) else None


def _sample_result(
    task: InspectTask, scorer: str, sample: EvalSample, grade: Grade
) -> SampleResult:
    metadata = sample.metadata or {}
    choices = sample.output.choices if sample.output is not None else []
    target = sample.target if isinstance(sample.target, list) else [sample.target]
    usage = list((sample.model_usage or {}).values())
    is_cut = _is_cut_short(sample)
    is_malformed = bool(choices) and bool((sample.output.metadata or {}).get("malformed"))
    topic, cluster = metadata.get("topic"), metadata.get(task.cluster_key)
    return SampleResult(
        id=f"{task.name}/{sample.id}",
        topic=None if topic is None else str(topic),
        question=last_user_text(sample.input),
        expected=tuple(map(str, target)),
        answer=sample.output.completion if choices else None,
        # A malformed answer counts as wrong, whatever a scorer found in it; a cut one as it stands.
        score=0.0 if is_malformed and not is_cut else grade.score,
        truncated=is_cut,
        malformed=is_malformed and not is_cut,
        error=grade.problem,
        repeat=sample.epoch,
        cluster=None if cluster is None else str(cluster),
        num_prompt_tokens=sum(one.input_tokens for one in usage),
        num_sampled_tokens=sum(one.output_tokens for one in usage),
        other_scores=_others(sample.scores or {}, scorer, task.score_key),
    )


def _is_cut_short(sample: EvalSample) -> bool:
    """Whether a limit of Inspect ended the sample, or the limit of tokens any turn of it."""
    if sample.limit is not None and sample.limit.type not in BY_OPERATOR:
        return True
    choices = sample.output.choices if sample.output is not None else []
    ends: Sequence[str] = [choice.stop_reason for choice in choices[:1]]
    return any(one in ("max_tokens", "model_length") for one in ends) or bool(
        sample.store.get(CUT_TURNS)
    )


def _others(
    scores: Mapping[str, Score], scorer: str, score_key: str | None
) -> dict[str, float | str]:
    """The values beside the one that counts, by scorer, or by scorer and key."""
    values: dict[str, Any] = {}
    for name, score in scores.items():
        if isinstance(score.value, dict):
            values |= {f"{name}.{key}": value for key, value in score.value.items()}
        else:
            values[name] = score.value
    counting = scorer if scorer in values else f"{scorer}.{score_key}"
    numbers = {name: number_of(value) for name, value in values.items() if name != counting}
    return {
        name: first_line_of(str(values[name])) if number is None else number
        for name, number in numbers.items()
    }
