"""What a round shows beside its score, each found and recorded once: curves, topics, limits."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ledger.records import Checkpoint
from loop.planning.methods import group_size
from loop.rounds.run import Run, topics_for
from loop.rounds.signals import rewards_in
from scores.diagnosis import (
    Curves,
    PreferenceSteps,
    TopicReport,
    diagnose,
    preference_course,
    teacher_course,
    topic_reports,
)
from scores.limits import Metrics, check
from scores.measures import method_words
from scores.results import EvalResult
from scores.reward_course import RewardSteps, RoundRewards, reward_course, round_rewards
from storage.stored_json import record_of

REWARDS = "rewards"  # of a round, in its `diagnosed` event


def diagnose_and_record(run: Run, result: EvalResult) -> str | None:
    """Say once what a trained round's curves show; None for the baseline, which has none."""
    store, round_no = run.store, result.round
    if round_no == 0:
        return None
    if (recorded := store.diagnosis(round_no)) is not None:
        return recorded
    lr = store.last_lr(round_no)
    assert lr is not None, "a trained round has steps"
    curves = Curves(
        losses=store.losses(round_no),
        held_out=store.held_out_points(round_no),
        lr=lr,
        lora_rank=run.plan.config.lora_rank,
        vocab_size=len(run.plan.renderer.tokenizer),
        course=_course_of_method(run, round_no),
        loss_is=method_words(run.plan.config.model_dump(mode="json")).nll_is,
    )
    lineage = [one for number in store.lineage(round_no) if (one := store.result(number))]
    told: dict[str, dict[str, Any]] = {}
    if run.plan.config.method == "rl":
        rewards = round_rewards(rewards_in(store, round_no, group_size(run.plan.config)))
        rounds = [*(_recorded_rewards(run, one.round) for one in lineage[1:]), rewards]
        course = reward_course(_reward_steps(run, round_no), rounds, lineage, result)
        curves = curves._replace(course=course.said, course_kinds=course.kinds)
        told = {} if rewards is None else {REWARDS: asdict(rewards)}
    found = diagnose(curves, lineage, result)
    store.record_diagnosis(round_no, found.sentence, found.kinds, **told)
    return found.sentence


def _recorded_rewards(run: Run, round_no: int) -> RoundRewards | None:
    """Where the rewards of an earlier round went; None where they could not be compared, and of
    rounds that a version before has trained."""
    found = [event.get(REWARDS) for event in run.store.events("diagnosed", round_no)]
    return record_of(RoundRewards, found[-1]) if found and found[-1] is not None else None


def _reward_steps(run: Run, round_no: int) -> RewardSteps:
    steps = [one["measures"] for one in run.store.events("step", round_no) if _has_reward(one)]
    return RewardSteps(
        rewards=[one["reward"] for one in steps],
        num_learnable=[round(one["learnable_groups"]) for one in steps],
    )


def _has_reward(step: dict[str, Any]) -> bool:
    return {"reward", "learnable_groups"} <= set(step.get("measures", ()))


def _course_of_method(run: Run, round_no: int) -> str | None:
    """Where a round's steps went, in the method's own measures; None where its losses say so."""
    config = run.plan.config
    steps = list(run.store.events("step", round_no))
    measures = [step.get("measures", {}) for step in steps]
    if config.distill is not None and config.distill.way == "on_policy":
        kls = [one["reverse_kl"] for one in measures if "reverse_kl" in one]
        return teacher_course(kls) if kls else "the student's answers had no token to be judged by"
    if config.method != "dpo":
        return None
    return preference_course(
        PreferenceSteps(
            losses=[step["loss"] for step in steps],
            margins=[one["margin"] for one in measures],
            chosen_gains=[one["chosen_gain"] for one in measures],
        )
    )


def topics_and_record(run: Run, result: EvalResult) -> list[TopicReport]:
    """Say once how each topic stands after a trained round; empty for the baseline."""
    store, round_no = run.store, result.round
    if round_no == 0:
        return []
    if (recorded := store.topics(round_no)) is not None:
        return recorded
    selection, before = store.selection(round_no), store.result(store.lineage(round_no)[-1])
    assert selection is not None, "a trained round was selected"
    if run.plan.mining.needs_topics:  # the questions may have none of their own
        topics = topics_for(run, result)
        result = topics.labelled(result)
        before = None if before is None else topics.labelled(before)
    reports = topic_reports(result, before, selection.added_by_topic)
    store.record_topics(round_no, reports)
    return reports


def check_limits(run: Run, result: EvalResult, checkpoint: Checkpoint | None) -> None:
    """Hold a trained round against the limits of `evalops_budget_file`, once, and alert."""
    store, round_no = run.store, result.round
    if run.limits is None or checkpoint is None or store.limits_verdict(round_no) is not None:
        return
    verdict = check(run.limits, round_metrics(run, result))
    store.append("limits_checked", round=round_no, step=checkpoint.step, **verdict.to_json())
    for one in (*verdict.violations, *verdict.warnings):
        run.progress.line(f"  {one.type}: {one.message}")
    if verdict.violations:
        said = " ".join(one.message for one in verdict.violations)
        run.alert("limits_violated", {"round": round_no, "detail": said})


def round_metrics(run: Run, result: EvalResult) -> Metrics:
    """What limits are held against: a round's scores, and what the run has used up to it."""
    used = run.store.spent()
    custom = {task.name: task.score for task in result.tasks}
    custom |= {f"{t.name}/{name}": value for t in result.tasks for name, value in t.metrics.items()}
    custom |= {loss.name: loss.nll for loss in result.held_out}
    return Metrics(
        quality_score=result.score,
        cost_usd=run.plan.cost_usd(used),
        tokens_used=used.tokens,
        avg_latency_ms=run.store.mean_latency_ms(result.round),
        total_execution_time_ms=used.minutes * 60_000,
        custom=custom,
    )
