"""From what the trials of a study came to, to what is told of it: pure, and the same for the same
trials in whatever order they stand.

What the words and numbers mean is said in docs/studies.md, "What the report says"; the formulas are
in `scores.comparisons`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scores.comparisons import (
    MIN_SEEDS,
    Parts,
    Pool,
    difference,
    groups_of,
    holm,
    letter,
    seed_deviation,
    shared,
)
from scores.intervals import Interval, mean
from scores.results import TaskResult
from scores.wording import interval_text
from studies.findings.answer import answer_of
from studies.findings.claims import ALPHA, SAID, judge_claim, ladder_of
from studies.findings.findings import (
    ArmFinding,
    ClaimFinding,
    Difference,
    Findings,
    NotRun,
    Verdict,
)
from studies.findings.hypothesis import read_hypothesis
from studies.findings.measured import (
    ROUNDING,
    MeasuredArm,
    best_first,
    clusters_of,
    control_of,
    is_repeated,
    known_variance,
    listed,
    listed_few,
    measured_arms,
    other_protocol,
    p_text,
    paired,
    pool_of,
)
from studies.findings.outcome import StudyOutcome
from studies.findings.remarks import remarks_of


def analyse(outcome: StudyOutcome) -> Findings:
    """Say what a study shows: its arms, who differs from whom, and its hypothesis answered."""
    measured = measured_arms(outcome)
    control = control_of(outcome, measured)
    arms = measured
    if control.arm is not None and control.arm not in measured:
        arms = best_first([*measured, control.arm])
    compared = [arm for arm in arms if not arm.is_dropped]
    pairs = _pairs(compared)
    groups = _groups(compared, pairs)
    best = compared[0] if compared else None
    against_control = _against(control.arm, compared, pairs)
    gains = {one.one: one.mean for one in against_control if one.is_told_apart}
    against_best = _against(best, compared, pairs)
    claims, verdict, verdict_sentence = _hypothesis_answered(outcome, compared)
    return Findings(
        headline=_headline(compared, control.arm, pairs, _ending(outcome, arms)),
        answer=answer_of(compared, control.arm, against_best),
        control=None if control.arm is None else control.arm.name,
        best=None if best is None else best.name,
        arms=[
            _arm_finding(arm, groups.letters.get(arm.name, ""), gains, control.arm) for arm in arms
        ],
        against_control=against_control,
        against_best=against_best,
        pairs=pairs,
        groups=groups.sentences,
        claims=claims,
        verdict=verdict,
        verdict_sentence=verdict_sentence,
        not_run=_not_run(outcome),
        remarks=[*control.remarks, *remarks_of(outcome, arms, pairs)],
    )


# --- differences ----------------------------------------------------------------------------------


def _pairs(arms: Sequence[MeasuredArm]) -> list[Difference]:
    """Every pair of arms that has a seed and a question in common, the better one first."""
    pool = pool_of(arms)
    found = [_difference(*pair, pool) for pair in itertools.combinations(arms, 2)]
    pairs = [one for one in found if one is not None]
    adjusted = holm([one.p_value for one in pairs])
    return [_told(one, p) for one, p in zip(pairs, adjusted, strict=True)]


class _Compared(NamedTuple):
    """A difference before it is adjusted, and the arms that it is of."""

    one: MeasuredArm
    other: MeasuredArm
    mean: float
    interval: Interval | None
    p_value: float | None
    method: str
    n: int
    num_seeds: int
    num_left_out: int
    parts: Parts | None


def _difference(one: MeasuredArm, other: MeasuredArm, pool: Pool | None) -> _Compared | None:
    sides = paired([one, other])
    if not sides or not shared([answers for both in sides for answers in both]):
        return None
    arms = [one, other]
    table = difference(
        [both[0] for both in sides],
        [both[1] for both in sides],
        clusters_of(arms),
        is_repeated=is_repeated(arms),
        known=known_variance([(1.0, one), (-1.0, other)], pool),
    )
    asked = {
        (task, question)
        for both in sides
        for answers in both
        for task, scores in answers.items()
        for question in scores
    }
    return _Compared(
        one,
        other,
        0.0 if abs(table.mean) <= ROUNDING else table.mean,
        table.interval,
        table.p_value,
        table.method,
        table.n,
        table.num_seeds,
        len(asked) - table.n,
        table.parts,
    )


def _told(found: _Compared, p_holm: float | None) -> Difference:
    is_apart = p_holm is not None and p_holm < ALPHA
    is_trained = found.one.is_trained or found.other.is_trained
    # What is not trained has no seeds to vary with.
    is_of_setting = found.num_seeds >= MIN_SEEDS or not is_trained
    return Difference(
        one=found.one.name,
        other=found.other.name,
        mean=found.mean,
        interval=found.interval,
        p_value=found.p_value,
        p_holm=p_holm,
        method=found.method,
        n=found.n,
        num_seeds=found.num_seeds,
        is_told_apart=is_apart,
        sentence=_sentence(found, p_holm, is_of_setting=is_of_setting),
        is_of_setting=is_of_setting,
        num_left_out=found.num_left_out,
        is_of_trained=is_trained,
        parts=found.parts,
    )


def _sentence(found: _Compared, p_holm: float | None, *, is_of_setting: bool) -> str:
    one, other = found.one.name, found.other.name
    seeds = f" over {found.num_seeds} seeds" if found.num_seeds > 1 else ""
    ends = interval_text(found.interval, signed=True)
    questions = f"{found.n} question{'s' * (found.n != 1)}"
    numbers = f"{found.mean:+.4f} {ends}, {p_text(p_holm)} by Holm, paired on {questions}{seeds}"
    is_apart = p_holm is not None and p_holm < ALPHA
    if is_of_setting:
        better = "scores higher than" if found.mean > 0 else "scores lower than"
        return (
            f"{one} {better} {other}: {numbers}."
            if is_apart
            else (f"{one} and {other} cannot be told apart: {numbers}.")
        )
    what = "these two checkpoints" if found.num_seeds == 1 else "these checkpoints (2 seeds)"
    if not is_apart:
        return f"{one} and {other}: {what} cannot be told apart: {numbers}."
    return f"{one} and {other}: {what} differ: {numbers}. It says nothing of the settings."


def _against(
    reference: MeasuredArm | None, arms: Sequence[MeasuredArm], pairs: Sequence[Difference]
) -> list[Difference]:
    """Each other arm less the reference, best first."""
    if reference is None:
        return []
    found = {}
    for pair in pairs:
        if pair.other == reference.name:
            found[pair.one] = pair
        elif pair.one == reference.name:
            found[pair.other] = _turned(pair, arms)
    return [found[arm.name] for arm in arms if arm.name in found]


def _turned(pair: Difference, arms: Sequence[MeasuredArm]) -> Difference:
    """The same difference, seen from the other arm."""
    by_name = {arm.name: arm for arm in arms}
    interval = pair.interval
    found = _Compared(
        by_name[pair.other],
        by_name[pair.one],
        0.0 if pair.mean == 0 else -pair.mean,
        None if interval is None else Interval(-interval.high, -interval.low),
        pair.p_value,
        pair.method,
        pair.n,
        pair.num_seeds,
        pair.num_left_out,
        pair.parts,
    )
    return _told(found, pair.p_holm)


# --- groups ---------------------------------------------------------------------------------------


class _Groups(NamedTuple):
    letters: dict[str, str]
    sentences: list[str]


def _groups(arms: Sequence[MeasuredArm], pairs: Sequence[Difference]) -> _Groups:
    names = [arm.name for arm in arms]
    at = {name: number for number, name in enumerate(names)}
    apart = {(at[one.one], at[one.other]) for one in pairs if one.is_told_apart}
    compared = {frozenset((at[one.one], at[one.other])) for one in pairs}
    letters = dict.fromkeys(names, "")
    sentences = []
    groups = groups_of(len(names), apart)
    if groups is None:
        told = "There are too many groups to name; the pairs say who can be told apart."
        return _Groups(letters, [told])
    for number, members in enumerate(groups):
        for member in members:
            letters[names[member]] += letter(number)
        if len(members) > 1:
            told = listed([names[member] for member in members])
            all_of_them = map(frozenset, itertools.combinations(members, 2))
            limit = "" if compared.issuperset(all_of_them) else ", and not all were compared"
            sentences.append(f"{told} cannot be told apart (group {letter(number)}){limit}.")
    return _Groups(letters, sentences)


# --- arms -----------------------------------------------------------------------------------------


def _arm_finding(
    arm: MeasuredArm, groups: str, gains: Mapping[str, float], control: MeasuredArm | None
) -> ArmFinding:
    trials = [] if arm.outcome is None else list(arm.outcome.trials)
    table = arm.table
    if arm.num_seeds == 1:
        interval = arm.first.interval
    else:
        interval = None if table is None else table.interval
    tasks = arm.first.tasks
    scored = [task for result in arm.results.values() for task in result.scored_tasks]
    num_tokens = sum(trial.usage.tokens - trial.common_usage.tokens for trial in trials)
    paying = [trial for trial in trials if trial.usage.tokens]
    costs = [t.cost_usd - (t.common_cost_usd or 0.0) for t in paying if t.cost_usd is not None]
    cost = sum(costs) if costs and len(costs) == len(paying) else None
    counted = "dropped" if arm.is_dropped else "done"
    points = gains.get(arm.name, 0.0) * 100
    has_gain = points > ROUNDING
    return ArmFinding(
        name=arm.name,
        run_ids=sorted(t.run_id for t in trials if t.result is not None and t.status == counted),
        num_seeds=arm.num_seeds,
        score=arm.score,
        interval=interval,
        is_of_setting=arm.is_trained and arm.num_seeds >= MIN_SEEDS,
        seed_deviation=seed_deviation([result.score for result in arm.results.values()]),
        groups=groups,
        tasks=tasks,
        task_scores=[_task_mean(arm, task) for task in tasks],
        num_lora_params=next((t.num_lora_params for t in trials if t.num_lora_params), None),
        learning_rate=next((t.learning_rate for t in trials if t.learning_rate), None),
        num_tokens=num_tokens,
        cost_usd=cost,
        tokens_per_point=num_tokens / points if has_gain and num_tokens else None,
        # What was measured elsewhere has no tokens, and is not therefore free.
        usd_per_point=cost / points if has_gain and num_tokens and cost is not None else None,
        num_answers=sum(len(task.samples) for task in scored),
        num_flawed=sum(task.num_flawed for task in scored),
        num_failed=sum(task.num_failed for task in scored),
        note=_note(arm, control),
    )


def _task_mean(arm: MeasuredArm, task: TaskResult) -> float:
    found = [result.task(task.name) for result in arm.results.values()]
    return mean([one.score for one in found if one is not None])


def _note(arm: MeasuredArm, control: MeasuredArm | None) -> str:
    """What a row of the table is to be read with."""
    if arm.outcome is None:
        return "what the trials began with"
    trials = arm.outcome.trials
    told = []
    if arm.is_dropped:
        rounds = sorted({t.round_no for t in trials if t.round_no is not None})
        after = f" after round {rounds[-1]}" if rounds else ""
        told.append(f"dropped{after}: its score is of fewer rounds than the others'")
    lacking = len(trials) - arm.num_seeds
    if lacking > 0:
        told.append(f"{lacking} of {len(trials)} trials not done")
    if control is not None and (keys := other_protocol(arm, control)):
        told.append(f"asked with another {listed(keys)} than {control.name}")
    return "; ".join(told)


def _not_run(outcome: StudyOutcome) -> list[NotRun]:
    """The trials that nothing is told of, and why."""
    found = []
    for arm in outcome.arms:
        for trial in arm.trials:
            has_result = trial.result is not None
            if has_result and trial.status in ("done", "dropped"):
                continue
            why = trial.why or ("" if has_result else "it has no result")
            found.append(NotRun(trial.run_id, arm.name, trial.status, why))
    return sorted(found)


# --- the hypothesis -------------------------------------------------------------------------------


class _Hypothesis(NamedTuple):
    claims: list[ClaimFinding]
    verdict: Verdict | None
    sentence: str


def _hypothesis_answered(outcome: StudyOutcome, arms: Sequence[MeasuredArm]) -> _Hypothesis:
    said = [(variable, claim) for variable, those in outcome.expects.items() for claim in those]
    head = "As stated in study.expects"
    if not said:
        if not (outcome.hypothesis or "").strip():
            return _Hypothesis([], None, "The study states no hypothesis.")
        tasks = set(outcome.task_names.values())
        reading = read_hypothesis(outcome.hypothesis or "", list(outcome.variables), tasks)
        if reading.why_not is not None:
            sentence = (
                f"The hypothesis is not answered, since it could not be read surely: "
                f"{reading.why_not}. State it in study.expects, such as `expects: "
                f"{{{next(iter(outcome.variables), 'VARIABLE')}: [rises]}}`."
            )
            return _Hypothesis([], None, sentence)
        said, head = reading.claims, "Read as"
    ladders = {name: ladder_of(name, outcome.variables, arms) for name, _ in said}
    claims = [judge_claim(claim, ladders[variable]) for variable, claim in said]
    verdicts = [claim.verdict for claim in claims]
    verdict: Verdict = "undecided"
    if all(one == "supported" for one in verdicts):
        verdict = "supported"
    elif "not supported" in verdicts:
        verdict = "not supported"
    read = "; ".join(
        SAID[claim].format(variable) if claim in SAID else f"{claim} of {variable}"
        for variable, claim in said
    )
    caveats = list(dict.fromkeys(claim.caveat for claim in claims if claim.caveat))
    but = f" But {'; '.join(caveats)}." if caveats else ""
    return _Hypothesis(claims, verdict, f"The hypothesis is {verdict}. {head}: {read}.{but}")


# --- in one sentence ------------------------------------------------------------------------------


def _headline(
    arms: Sequence[MeasuredArm],
    control: MeasuredArm | None,
    pairs: Sequence[Difference],
    ending: str,
) -> str:
    """What the study found. One sentence."""
    if not arms:
        return f"No trial is done, so nothing was found{ending}."
    best = arms[0]
    score = f"{best.score:.4f}"
    if len(arms) == 1:
        return f"{best.name} alone was measured, with {score}, so nothing is compared{ending}."
    if arms[0].score - arms[-1].score <= ROUNDING:
        return f"All {len(arms)} arms scored the same, {score}{ending}."
    if not any(pair.is_told_apart for pair in pairs):
        what = f"No two of the {len(arms)} arms can be told apart"
        return f"{what}; {best.name} scored highest with {score}{ending}."
    with_best = [pair for pair in pairs if best.name in (pair.one, pair.other)]
    alike = [
        pair.other if pair.one == best.name else pair.one
        for pair in with_best
        if not pair.is_told_apart
    ]
    if len(alike) == len(arms) - 1:
        rest = "though it is told apart from no other arm"
    elif alike:
        rest = f"and cannot be told apart from {listed_few(alike)}"
    else:
        # Whoever has no result, or was dropped, stands in the ending.
        rest = "and is told apart from every other arm compared"
        rest *= len(with_best) == len(arms) - 1
    is_control = control is not None and control.name == best.name
    head = f"{best.name}{', the control,' if is_control else ''} scored highest with {score}"
    if control is not None and not is_control:
        gain = next((p for p in with_best if control.name in (p.one, p.other)), None)
        head += "" if gain is None else f", {gain.mean:+.4f} over {control.name}"
    is_of_setting = all(pair.is_of_setting for pair in with_best)
    limit = "" if is_of_setting else ", as far as these checkpoints go"
    return f"{head}{', ' * bool(rest)}{rest}{limit}{ending}."


def _ending(outcome: StudyOutcome, arms: Sequence[MeasuredArm]) -> str:
    """How the headline ends: who is not compared, and what is lacking."""
    num_dropped = sum(arm.is_dropped for arm in arms)
    are = f"{num_dropped} arms were" if num_dropped > 1 else "1 arm was"
    dropped = f"; {are} dropped early and not compared" if num_dropped else ""
    num_trials = sum(len(arm.trials) for arm in outcome.arms)
    num_lacking = len(_not_run(outcome)) if arms else 0  # without arms it is said already
    lacking = f"; {num_lacking} of {num_trials} trials have no result" if num_lacking else ""
    return dropped + lacking
