"""The arms of a study as tables of answers: which seeds pair, what is the control, what differs
between evaluations that are compared. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from errors import one_line
from scores.comparisons import Answers, Crossed, Pool, crossed, pooled_seeds, shared
from scores.intervals import UNIT, mean
from scores.results import EvalResult
from scores.wording import p_digits
from studies.findings.outcome import ArmOutcome, StudyOutcome, TrialOutcome

BASE_MODEL = "base model"
# Variables that change what a trial begins with.
BEGINNINGS = ("base_model", "start_from", "model", "checkpoint", "renderer_name")
ROUNDING = 1e-12  # scores that are nearer than this are equal
# Below it, p hangs on the shape of a distribution's far end, of which questions say nothing.
SMALLEST_P = 1e-4

SeedKey = tuple[int, int]  # the seed (-1: none given), and which trial of it


@dataclass(frozen=True)
class MeasuredArm:
    """An arm and the evaluations that are told of it, by seed. `is_dropped`: not comparable, since
    it had fewer rounds than the others."""

    name: str
    outcome: ArmOutcome | None  # None: what the trials began with
    is_trained: bool
    results: Mapping[SeedKey, EvalResult]
    is_dropped: bool = False

    @cached_property
    def answers(self) -> dict[SeedKey, Answers]:
        return {key: answers_of(result) for key, result in self.results.items()}

    @property
    def first(self) -> EvalResult:
        return next(iter(self.results.values()))

    @property
    def num_seeds(self) -> int:
        return len(self.results)

    @cached_property
    def table(self) -> Crossed | None:
        """Its mean over seeds and questions; None where its seeds share no question."""
        found = list(self.answers.values())
        return crossed(found, clusters_of([self]), UNIT) if shared(found) else None

    @cached_property
    def score(self) -> float:
        if self.num_seeds > 1 and self.table is not None:
            return self.table.mean
        return mean([result.score for result in self.results.values()])


def answers_of(result: EvalResult) -> Answers:
    """The scored tasks' answers, by question."""
    return {task.name: task.scores for task in result.scored_tasks}


def clusters_of(arms: Sequence[MeasuredArm]) -> dict[str, Mapping[str, str] | None]:
    """The cluster of each question that any of the arms was asked, by task; None where no two share
    one."""
    found: dict[str, dict[str, str]] = {}
    asked: dict[str, set[str]] = {}
    for arm in arms:
        for result in arm.results.values():
            for task in result.scored_tasks:
                asked.setdefault(task.name, set()).update(task.scores)
                found.setdefault(task.name, {}).update(task.clusters or {})
    # A question that shares its cluster with none is one by itself.
    return {
        name: {question: found[name].get(question, question) for question in questions}
        if found[name]
        else None
        for name, questions in asked.items()
    }


def is_repeated(arms: Sequence[MeasuredArm]) -> bool:
    return any(
        task.num_repeats > 1
        for arm in arms
        for result in arm.results.values()
        for task in result.scored_tasks
    )


def measured_arms(outcome: StudyOutcome) -> list[MeasuredArm]:
    """Every arm with a result, in a fixed order: best first, equals by name, dropped ones last."""
    arms = []
    for arm in outcome.arms:
        done = arm.measured
        dropped = [t for t in arm.trials if t.status == "dropped" and t.result is not None]
        if done or dropped:
            results = _by_seed(done or dropped)
            arms.append(MeasuredArm(arm.name, arm, arm.is_trained, results, not done))
    return best_first(arms)


def best_first(arms: Sequence[MeasuredArm]) -> list[MeasuredArm]:
    return sorted(
        arms, key=lambda arm: (arm.is_dropped, -round(arm.score / ROUNDING), _natural(arm.name))
    )


def _natural(name: str) -> list[tuple[int, float, str]]:
    """A key by which run_2 comes before run_10."""
    parts = re.findall(r"\d+(?:\.\d+)?|[^\d]+", name)
    return [(0, float(p), "") if p[0].isdigit() else (1, 0.0, p) for p in parts]


def _by_seed(trials: Sequence[TrialOutcome]) -> dict[SeedKey, EvalResult]:
    numbers: Counter[int] = Counter()
    found: dict[SeedKey, EvalResult] = {}
    for trial in sorted(trials, key=lambda one: (_seed(one), one.run_id)):
        if trial.result is not None:
            found[(_seed(trial), numbers[_seed(trial)])] = trial.result
            numbers[_seed(trial)] += 1
    return found


def _seed(trial: TrialOutcome) -> int:
    return -1 if trial.seed is None else trial.seed


def paired(arms: Sequence[MeasuredArm]) -> list[list[Answers]]:
    """For each seed that all trained arms have, the answers of each arm. What is not trained has no
    seeds and is paired with every one."""
    trained = [set(arm.results) for arm in arms if arm.is_trained]
    keys = set.intersection(*trained) if trained else {min(arms[0].results)}
    return [
        [arm.answers.get(key) or next(iter(arm.answers.values())) for arm in arms]
        for key in sorted(keys)
    ]


def pool_of(arms: Sequence[MeasuredArm]) -> Pool | None:
    """How the trained arms vary with the seeds that all of them have."""
    trained = [arm for arm in arms if arm.is_trained]
    keys = sorted(set.intersection(*(set(arm.results) for arm in trained))) if trained else []
    return pooled_seeds([[arm.results[key].score for key in keys] for arm in trained])


def known_variance(
    terms: Sequence[tuple[float, MeasuredArm]], pool: Pool | None
) -> tuple[float, float] | None:
    """What the pool says of a contrast of arms: of trained ones alone, or of those beside what does
    not vary with seeds."""
    if pool is None:
        return None
    squares = sum(weight**2 for weight, arm in terms if arm.is_trained)
    is_balanced = abs(sum(weight for weight, arm in terms if arm.is_trained)) < ROUNDING
    return squares * (pool.between if is_balanced else pool.own), pool.df


# --- the control ----------------------------------------------------------------------------------


class Control(NamedTuple):
    """The arm that others are compared with first, and what is to be said of the choice."""

    arm: MeasuredArm | None
    remarks: list[str]


def control_of(outcome: StudyOutcome, arms: Sequence[MeasuredArm]) -> Control:
    """The untrained arm without prompt and checkpoint, else what the trials began with, else the
    study's first arm."""
    compared = [arm for arm in arms if not arm.is_dropped]
    for arm in compared:
        plain = arm.outcome is not None and not any(
            value is not None for value in arm.outcome.params.values()
        )
        if not arm.is_trained and plain:
            return Control(arm, [])
    trials = [
        trial for arm in outcome.arms if arm.is_trained for trial in arm.trials if trial.baseline
    ]
    trials.sort(key=lambda one: one.run_id)
    found = [trial.baseline for trial in trials if trial.baseline is not None]
    varied = [n for n, v in outcome.variables.items() if len(v) > 1 and _is_beginning(n)]
    kinds = {(_without_seed(one), one.checkpoint) for one in found}
    if not found or varied or len(kinds) > 1:
        return _first_arm(outcome, compared, varied, is_measured=bool(found))
    first = found[0]
    name = BASE_MODEL if first.checkpoint is None else f"start ({first.checkpoint})"
    while any(arm.name == name for arm in outcome.arms):
        name = f"{name} (round 0)"
    remarks = []
    if any(answers_of(one) != answers_of(first) for one in found[1:]):
        low, high = min(one.score for one in found), max(one.score for one in found)
        remarks.append(
            f"The {name} was evaluated {len(found)} times, with scores from {low:.4f} to "
            f"{high:.4f}; that of {trials[0].run_id} is the control."
        )
    return Control(MeasuredArm(name, None, False, {(-1, 0): first}), remarks)


def _is_beginning(name: str) -> bool:
    return name.rpartition(".")[2] in BEGINNINGS


def _without_seed(result: EvalResult) -> str:
    """The protocol but for the seed that it samples with, which no comparison hangs on."""
    kept = {key: value for key, value in result.protocol.items() if key != "seed"}
    return repr(sorted(kept.items()))


def _first_arm(
    outcome: StudyOutcome, compared: Sequence[MeasuredArm], varied: Sequence[str], is_measured: bool
) -> Control:
    by_name = {arm.name: arm for arm in compared}
    first = next((by_name[arm.name] for arm in outcome.arms if arm.name in by_name), None)
    if first is None:
        return Control(None, [])
    if varied:
        why = f"The trials begin with different things ({', '.join(varied)} varies)"
    elif is_measured:
        why = "The trials' baselines differ in checkpoint or protocol"
    else:
        why = "What the trials began with was not measured"
    return Control(first, [f"{why}, so there is no common control; {first.name} stands for it."])


# --- what keeps comparisons from being plain ------------------------------------------------------


def p_text(p_value: float | None) -> str:
    """A p as it is written, no more exact than it is known."""
    if p_value is None:
        return "p unknown"
    return f"p < {SMALLEST_P:.4f}" if p_value < SMALLEST_P else f"p = {p_digits(p_value)}"


def other_protocol(one: MeasuredArm, other: MeasuredArm) -> list[str]:
    """What of their evaluations differs, but for the tasks and the seed."""
    mine, its = one.first.protocol, other.first.protocol
    return sorted(
        key
        for key in (mine.keys() | its.keys()) - {"tasks", "seed"}
        if mine.get(key) != its.get(key)
    )


def protocol_remarks(arms: Sequence[MeasuredArm], task_names: Mapping[str, str]) -> list[str]:
    """How the evaluations that are compared differ other than by their weights."""
    results = [(arm.name, result) for arm in arms for result in arm.results.values()]
    remarks = []
    keys = {key for _, result in results for key in result.protocol}
    for key in sorted(keys - {"tasks", "seed"}):
        told = _values_of([(name, _protocol_words(result, key)) for name, result in results])
        if told is not None:
            remarks.append(f"Arms were evaluated with different {key}: {told}")
    for task in sorted({task.name for _, result in results for task in result.scored_tasks}):
        shown = task_names.get(task, task)
        having = {name for name, result in results if task in answers_of(result)}
        lacking = sorted({name for name, _ in results} - having)
        if lacking:
            remarks.append(
                f"{shown} was not asked of {listed_few(lacking)}, whose scores "
                "are of other tasks: differences are over the tasks that both have."
            )
        hashes = [
            (name, str((result.protocol.get("tasks") or {}).get(task, {}).get("sha256"))[:12])
            for name, result in results
            if name in having
        ]
        told = _values_of(hashes)
        if told is not None:
            remarks.append(
                f"{shown} was not the same for all arms: {told} Questions with one id may differ."
            )
    return remarks


def _protocol_words(result: EvalResult, key: str) -> str:
    value = result.protocol.get(key)
    return "none" if value is None else repr(value)


def _values_of(values: Sequence[tuple[str, str]]) -> str | None:
    """Which arms have which value; None where all have one."""
    names: dict[str, dict[str, None]] = {}
    for name, value in sorted(values, key=lambda one: (_natural(one[0]), one[1])):
        names.setdefault(value, {})[name] = None
    if len(names) < 2:
        return None
    told = [f"{one_line(value, 40)} ({listed_few(list(of))})" for value, of in names.items()]
    return "; ".join(told) + "."


def listed_few(names: Sequence[str]) -> str:
    """The first of many names."""
    return listed(names) if len(names) <= 4 else f"{listed(names[:3])} and {len(names) - 3} more"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
