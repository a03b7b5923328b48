"""A study's records made by hand: what its trials came to, and what is told of them.

The numbers are those of one fixed sequence; the findings are made plainly from the first seeds, so
that the report has something true to show. The real analysis has tests of its own.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledger.records import Usage
from scores.intervals import Interval
from scores.results import (
    EvalResult,
    Measured,
    SampleResult,
    eval_result,
    mean,
    score_difference,
    task_result,
)
from studies.findings.findings import ArmFinding, ClaimFinding, Difference, Findings, NotRun
from studies.findings.outcome import ArmOutcome, Change, CurvePoint, StudyOutcome, TrialOutcome

LEVEL = 0.95
TASKS = {"evals/domain_qa.py@domain_qa": "domain", "evals/facts.py@facts": "facts"}
CHECKPOINT = "tinker://run_000/sampler_weights/round_02"
HOSTILE = (
    "</script></style></svg><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)> | `code` | **bold**',
    "two\u2028lines\nand \u202eoverride\u0000\u0007 \ud800 \u200b end",
    "=HYPERLINK(1) " + "w" * 400,
)


@dataclass(frozen=True)
class Shape:
    """What kind of study is made."""

    names: Sequence[str] = ()  # instead of the ranks' own
    ranks: Sequence[int] = (8, 16, 32, 64)
    seeds: int = 3
    num_tasks: int = 2
    num_questions: int = 60
    is_equal: bool = False  # all scores
    has_intervals: bool = True
    has_prompt_arm: bool = True


def measured_result(
    share: float, chance: random.Random, shape: Shape, number: int = 2
) -> EvalResult:
    """A result of the weights of a round; round 0 is the base model's."""
    tasks = []
    for name in list(TASKS)[: shape.num_tasks]:
        samples = [
            SampleResult(
                id=f"{name}/{question}",
                topic=None,
                question=f"What is {question}?",
                expected=(str(question),),
                answer=str(question),
                score=float(shape.is_equal or chance.random() < share),
                truncated=question % 31 == 0,
                malformed=False,
                error=None,
            )
            for question in range(shape.num_questions)
        ]
        tasks.append(task_result(name, samples))
    checkpoint = CHECKPOINT if number else None
    return eval_result(number, checkpoint, Measured(tuple(tasks)), {"temperature": 0})


def _trial(run: int, seed: int, rank: int, share: float, shape: Shape) -> TrialOutcome:
    chance = random.Random(run)
    result = measured_result(share, chance, shape)
    baseline = measured_result(0.2, random.Random(0), shape, 0)
    curve = [
        CurvePoint(number, number * 10, number * 4200, score, score - 0.1, score + 0.1)
        for number, score in enumerate((0.2, share * 0.8, share))
    ]
    return TrialOutcome(
        run_id=f"run_{run:03d}",
        seed=seed,
        status="done",
        why="",
        result=result,
        baseline=baseline,
        round_no=2,
        curve=curve,
        learning_rate=3e-3,
        num_steps=20,
        num_lora_params=rank * 5184,
        usage=Usage(8400, 5200, 960, 1.5),
        cost_usd=0.0123,
        checkpoint=f"tinker://run_{run:03d}/sampler_weights/round_02",
        gate_sentences=("Round 1: 0.4000 < 0.80. It would have gone on at 0.8 times the rate.",),
    )


def study_outcome(shape: Shape = Shape(), **changes: Any) -> StudyOutcome:
    arms: list[ArmOutcome] = []
    run = itertools.count()
    for number, rank in enumerate(shape.ranks):
        share = 0.45 + 0.12 * min(number, 2)
        name = shape.names[number] if shape.names else f"lora_rank={rank}"
        trials = [_trial(next(run), seed, rank, share, shape) for seed in range(shape.seeds)]
        arms.append(ArmOutcome(name, {"lora_rank": rank}, True, trials))
    if shape.has_prompt_arm:
        result = measured_result(0.3, random.Random(99), shape, 0)
        trial = TrialOutcome("arm_prompt", None, "done", "", result, usage=Usage(0, 2600, 480, 0.4))
        arms.append(ArmOutcome("prompt", {"prompt": "Answer in one word."}, False, [trial]))
    fields: dict[str, Any] = {
        "name": "lora_ranks",
        "question": "How does the LoRA rank affect what is answered?",
        "hypothesis": "A higher rank improves the score, with diminishing returns above 32.",
        "expects": {},
        "variables": {"lora_rank": list(shape.ranks)},
        "seeds": shape.seeds,
        "arms": arms,
        "task_names": dict(list(TASKS.items())[: shape.num_tasks]),
        "checkpoint": "last",
        "warnings": ["lora_rank varies at alpha 32, so the scale alpha / rank varies with it."],
        "history": [Change("2026-01-02T03:04:05Z", "The arm prompt was added.")],
        "experiment_sha256": "ab" * 32,
    }
    return StudyOutcome(**(fields | changes))


def findings_of(outcome: StudyOutcome, shape: Shape = Shape(), **changes: Any) -> Findings:
    """Plain findings: means over seeds, differences of first seeds, Holm's p as Bonferroni's."""
    results: dict[str, EvalResult] = {}
    for arm in outcome.arms:
        for trial in arm.measured[:1]:
            assert trial.result is not None
            results[arm.name] = trial.result
            if trial.baseline is not None:
                results.setdefault("base model", trial.baseline)
    arms = [_arm(name, result, outcome, shape) for name, result in results.items()]
    arms.sort(key=lambda arm: -arm.score)
    names = [arm.name for arm in arms]
    num_pairs = len(names) * (len(names) - 1) // 2
    pairs = [
        _difference(one, other, results, num_pairs, shape)
        for one, other in itertools.combinations(names, 2)
    ]
    best = names[0] if names else None
    fields: dict[str, Any] = {
        "headline": f"Of {len(names)} arms {best} has the highest score.",
        "answer": [f"{best} scored highest.", "The others are worse."],
        "control": "base model" if names else None,
        "best": best,
        "arms": arms,
        "against_control": [d for d in pairs if d.other == "base model"],
        "against_best": [d for d in pairs if d.one == best],
        "pairs": pairs,
        "groups": [f"{', '.join(names[:2])} cannot be told apart."] if len(names) > 1 else [],
        "claims": _claims() if len(names) > 2 else [],
        "verdict": "undecided" if len(names) > 2 else None,
        "verdict_sentence": "The hypothesis is undecided. Read as: the score rises with lora_rank.",
        "not_run": [],
        "remarks": ["The winner was chosen by the same questions, so its score is optimistic."],
    }
    return Findings(**(fields | changes))


def _arm(name: str, result: EvalResult, outcome: StudyOutcome, shape: Shape) -> ArmFinding:
    trials = [t for arm in outcome.arms if arm.name == name for t in arm.measured]
    all_results = [t.result for t in trials if t.result is not None] or [result]
    score = mean([one.score for one in all_results])
    return ArmFinding(
        name=name,
        run_ids=[trial.run_id for trial in trials],
        num_seeds=max(1, len(trials)),
        score=score,
        interval=Interval(max(0, score - 0.1), min(1, score + 0.1))
        if shape.has_intervals
        else None,
        is_of_setting=len(trials) >= 3,
        seed_deviation=0.0213 if len(trials) > 1 else None,
        groups="ab"[: 1 + (score > 0.5)],
        tasks=result.tasks,
        task_scores=[task.score for task in result.tasks],
        num_lora_params=trials[0].num_lora_params if trials else None,
        learning_rate=trials[0].learning_rate if trials else None,
        num_tokens=sum(trial.usage.tokens for trial in trials),
        cost_usd=0.0369 if len(trials) == shape.seeds else None,
        tokens_per_point=1200.4 if score > 0.25 else None,
        usd_per_point=0.00134 if score > 0.25 and trials else None,
    )


def _around(score: float) -> Interval:
    return Interval(max(0.0, score - 0.1), min(1.0, score + 0.1))


def _difference(
    one: str, other: str, results: Mapping[str, EvalResult], num_pairs: int, shape: Shape
) -> Difference:
    moved = score_difference(results[one], results[other], LEVEL)
    p_value = 0.004 if shape.has_intervals else None
    apart = moved.interval is not None and moved.interval.low > 0 and shape.has_intervals
    return Difference(
        one=one,
        other=other,
        mean=moved.mean,
        interval=moved.interval if shape.has_intervals else None,
        p_value=p_value,
        p_holm=None if p_value is None else min(1.0, p_value * num_pairs),
        method=moved.method,
        n=results[one].n,
        num_seeds=1,
        is_told_apart=apart,
        sentence=f"{one} is {'better than' if apart else 'not told apart from'} {other}.",
    )


def _claims() -> list[ClaimFinding]:
    return [
        ClaimFinding(
            "rises", "lora_rank", "supported", 0.21, Interval(0.08, 0.34), "It rises.", None
        ),
        ClaimFinding(
            "diminishing", "lora_rank", "undecided", 0.02, None, "It is not clear.", "9 seeds"
        ),
    ]


def not_run(run_id: str, why: str) -> NotRun:
    return NotRun(run_id, "lora_rank=64", "failed", why)
