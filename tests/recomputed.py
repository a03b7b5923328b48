"""A run's numbers, computed from its raw files by numpy and scipy: nothing of the product's rooms.

A task is the JSON object of `evals/*.json`, of which the samples alone are looked at. Intervals are
at 95 %; the formulas are those that `scores/intervals.py` cites.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Z = float(stats.norm.ppf(0.975))


class Figures(NamedTuple):
    """A score with its interval."""

    score: float
    low: float
    high: float
    n: int


class Change(NamedTuple):
    """A paired difference with its interval; `p_value` is None where tasks are combined."""

    mean: float
    low: float
    high: float
    p_value: float | None
    n: int


def evaluation(run_dir: Path, name: str) -> dict[str, Any]:
    return json.loads((run_dir / "evals" / f"{name}.json").read_text())


def by_question(task: dict[str, Any]) -> dict[str, float]:
    """Question -> its mean over repeats."""
    scores: dict[str, list[float]] = {}
    for sample in task["samples"]:
        scores.setdefault(sample["id"], []).append(sample["score"])
    return {question: float(np.mean(values)) for question, values in scores.items()}


def scored(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [task for task in result["tasks"] if task["role"] == "score"]


def figures_of_task(task: dict[str, Any]) -> Figures:
    """Wilson for right and wrong answers, Student t for others; without clusters."""
    values = np.array(list(by_question(task).values()))
    n, mean = len(values), float(values.mean())
    if set(values) <= {0.0, 1.0}:
        found = stats.binomtest(int(values.sum()), n).proportion_ci(0.95, method="wilson")
        return Figures(mean, found.low, found.high, n)
    half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Figures(mean, max(0.0, mean - half), min(1.0, mean + half), n)


def figures_of(result: dict[str, Any]) -> Figures:
    """The plain mean of the tasks' scores, with the square-and-add interval (MOVER)."""
    tasks = [figures_of_task(task) for task in scored(result)]
    mean = float(np.mean([one.score for one in tasks]))
    below = float(np.linalg.norm([one.score - one.low for one in tasks])) / len(tasks)
    above = float(np.linalg.norm([one.high - one.score for one in tasks])) / len(tasks)
    return Figures(mean, mean - below, mean + above, sum(one.n for one in tasks))


def change_of_task(after: dict[str, Any], before: dict[str, Any]) -> Change:
    """Bonett and Price with the exact McNemar p for right and wrong answers; else Student t."""
    new, old = by_question(after), by_question(before)
    assert new.keys() == old.keys()
    moved = np.array([new[question] - old[question] for question in new])
    n, mean = len(moved), float(moved.mean())
    if {*new.values(), *old.values()} <= {0.0, 1.0}:
        better, worse = int((moved == 1).sum()), int((moved == -1).sum())
        up, down = (better + 1) / (n + 2), (worse + 1) / (n + 2)
        half = Z * np.sqrt((up + down - (up - down) ** 2) / (n + 2))
        changed = better + worse
        p_value = float(stats.binomtest(better, changed).pvalue) if changed else 1.0
        low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
        return Change(mean, float(low), float(high), p_value, n)
    stderr = float(moved.std(ddof=1) / np.sqrt(n))
    half = float(stats.t.ppf(0.975, n - 1)) * stderr
    p_value = float(2 * stats.t.sf(abs(mean) / stderr, n - 1))
    return Change(mean, max(-1.0, mean - half), min(1.0, mean + half), p_value, n)


def change_of(after: dict[str, Any], before: dict[str, Any]) -> Change:
    """By how much a score moved, over all of its tasks."""
    old = {task["name"]: task for task in before["tasks"]}
    tasks = [change_of_task(task, old[task["name"]]) for task in scored(after)]
    if len(tasks) == 1:
        return tasks[0]
    mean = float(np.mean([one.mean for one in tasks]))
    below = float(np.linalg.norm([one.mean - one.low for one in tasks])) / len(tasks)
    above = float(np.linalg.norm([one.high - one.mean for one in tasks])) / len(tasks)
    return Change(mean, mean - below, mean + above, None, sum(one.n for one in tasks))


def steps_of(run_dir: Path, round_no: int) -> list[dict[str, Any]]:
    """The steps of a round, of a run that was never resumed."""
    lines = (run_dir / "ledger.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return [one for one in events if one["type"] == "step" and one["round"] == round_no]
