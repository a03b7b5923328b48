"""Successive halving over rounds: which arms go on after a rung, and why. Pure.

After a rung the better half of the arms goes on (Jamieson and Talwalkar 2016), and with it every
arm that cannot be told from the best one by the questions that both were asked.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scores.intervals import DIFFERENCE, Interval, combine, gate_difference, mean
from scores.results import EvalResult

LEVEL = 0.90  # of the two-sided interval of a difference: one-sided, an error of 1 in 20


def rungs(max_rounds: int, num_arms: int) -> list[int]:
    """The rounds after which arms are dropped, in their order: each rung takes twice as many rounds
    as the one before, and the last half of the rounds is for the arm, or the few, that are left."""
    num_halvings = max(0, math.ceil(math.log2(num_arms))) if num_arms > 1 else 0
    found: list[int] = []
    rung = max_rounds // 2
    while rung >= 1 and len(found) < num_halvings:
        found.insert(0, rung)
        rung //= 2
    return found


class RungVerdict(NamedTuple):
    """Whether an arm goes on after a rung, and why."""

    arm: str
    is_kept: bool
    sentence: str


def judge_rung(rung: int, results: Mapping[str, Sequence[EvalResult]]) -> list[RungVerdict]:
    """Judge all arms that have reached a rung, by their results there, one of each seed."""
    scores = {arm: mean([one.score for one in of_seeds]) for arm, of_seeds in results.items()}
    ranked = sorted(scores, key=lambda arm: -scores[arm])  # of equals the first stays first
    best, num_kept = ranked[0], math.ceil(len(ranked) / 2)
    verdicts = []
    for place, arm in enumerate(ranked, start=1):
        where = f"after round {rung}: {scores[arm]:.4f}, place {place} of {len(ranked)}"
        if place <= num_kept:
            verdicts.append(RungVerdict(arm, True, f"{where}, in the better half"))
            continue
        interval = _difference(results[arm], results[best])
        against = f"{scores[best]:.4f} of the best, {best}"
        if interval is None:
            said = f"{where}; how sure {against} is better is unknown, so it is kept"
            verdicts.append(RungVerdict(arm, True, said))
        elif interval.high >= 0:
            said = f"{where}, within noise of {against} ({_shown(interval)})"
            verdicts.append(RungVerdict(arm, True, said))
        else:
            said = f"{where}, below {against} beyond noise ({_shown(interval)})"
            verdicts.append(RungVerdict(arm, False, said))
    return verdicts


def _difference(one: Sequence[EvalResult], other: Sequence[EvalResult]) -> Interval | None:
    """The interval of a difference, question by question; a question's score is the mean over the
    seeds."""
    mine, its = _mean_scores(one), _mean_scores(other)
    names = sorted(mine.keys() & its.keys())
    clusters = {task.name: task.clusters for task in one[0].scored_tasks}
    means = [mean(list(mine[name].values())) - mean(list(its[name].values())) for name in names]
    intervals = [gate_difference(mine[name], its[name], clusters[name], LEVEL) for name in names]
    return combine(means, intervals, bounds=DIFFERENCE)


def _mean_scores(results: Sequence[EvalResult]) -> dict[str, dict[str, float]]:
    """By task and question, the mean over seeds."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for task in result.scored_tasks:
            for question, score in task.scores.items():
                found[task.name][question].append(score)
    return {
        task: {question: mean(scores) for question, scores in questions.items()}
        for task, questions in found.items()
    }


def _shown(interval: Interval) -> str:
    return f"[{interval.low:+.4f}, {interval.high:+.4f}], {LEVEL:.0%}"
