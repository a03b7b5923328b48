"""Outcomes of studies made up of right and wrong answers, for tests of what is told of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ledger.records import Usage
from scores.results import EvalResult, Measured, SampleResult, TaskResult, eval_result, task_result
from studies.findings.outcome import ArmOutcome, StudyOutcome, TrialOutcome

PROTOCOL = {"renderer": "llama3", "temperature": 0.0, "tasks": {"t": {"sha256": "aa"}}}


def task(name: str, scores: Mapping[str, float], clusters: Mapping[str, str] | None) -> TaskResult:
    samples = [
        SampleResult(
            id=f"{name}/{question}",
            topic=None,
            question=question,
            expected=("yes",),
            answer="yes",
            score=score,
            truncated=False,
            malformed=False,
            error=None,
            cluster=None if clusters is None else clusters[question],
        )
        for question, score in scores.items()
    ]
    return task_result(name, samples)


def by_question(scores: Sequence[float]) -> dict[str, float]:
    return {f"q{i:03}": float(score) for i, score in enumerate(scores)}


def result(
    *scores_T: Sequence[float] | Mapping[str, float],
    clusters: Mapping[str, str] | None = None,
    protocol: Mapping[str, Any] = PROTOCOL,
    checkpoint: str | None = "tinker://weights",
) -> EvalResult:
    """An evaluation on one task for each list of scores: t, t2, t3, ..."""
    tasks = []
    for number, scores in enumerate(scores_T, start=1):
        named = scores if isinstance(scores, Mapping) else by_question(scores)
        tasks.append(task("t" if number == 1 else f"t{number}", named, clusters))
    return eval_result(1, checkpoint, Measured(tuple(tasks)), dict(protocol))


def arm(
    params: Mapping[str, Any],
    results: Sequence[EvalResult | None],
    *,
    name: str | None = None,
    baseline: EvalResult | None = None,
    is_trained: bool = True,
    **fields: Any,
) -> ArmOutcome:
    """An arm with one trial for each result, its seeds counting up from 0."""
    name = name or ", ".join(f"{key}={value}" for key, value in params.items())
    trials = [
        TrialOutcome(
            **{
                "run_id": f"{name}#{seed}",
                "seed": seed,
                "status": "missing" if one is None else "done",
                "why": "",
                "result": one,
                "baseline": baseline,
                "usage": Usage(1000, 500, 100, 1.0),
                **fields,
            }
        )
        for seed, one in enumerate(results)
    ]
    return ArmOutcome(name, dict(params), is_trained, trials)


def study(arms: Sequence[ArmOutcome], **fields: Any) -> StudyOutcome:
    """A study of the arms; its variables are what their parameters take."""
    variables: dict[str, list[Any]] = {}
    for one in arms:
        for key, value in one.params.items() if one.is_trained else ():
            if value not in variables.setdefault(key, []):
                variables[key].append(value)
    return StudyOutcome(
        **{
            "name": "made_up",
            "question": None,
            "hypothesis": None,
            "expects": {},
            "variables": variables,
            "seeds": max((len(one.trials) for one in arms), default=1),
            "arms": list(arms),
            "task_names": {"t": "domain"},
            "checkpoint": "last",
            **fields,
        }
    )
