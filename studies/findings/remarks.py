"""What a reader of a study's report must know beside its numbers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scores.decision import WARN_FLAWED_SHARE
from scores.wording import interval_text
from studies.findings.findings import Difference
from studies.findings.measured import MeasuredArm, listed_few, protocol_remarks
from studies.findings.outcome import StudyOutcome


def remarks_of(
    outcome: StudyOutcome, arms: Sequence[MeasuredArm], pairs: Sequence[Difference]
) -> list[str]:
    """One sentence or two for each, the weightiest first."""
    compared = [arm for arm in arms if not arm.is_dropped]
    return [
        *_about_seeds(compared),
        *protocol_remarks(arms, outcome.task_names),
        *_about_questions(compared),
        *_about_pairs(compared, pairs),
        *_about_variables(outcome),
        *_about_trials(outcome, arms),
        *_about_answers(outcome, arms),
        *_about_the_winner(outcome, compared),
        *([] if outcome.budget_sentence is None else [outcome.budget_sentence]),
    ]


def _about_seeds(arms: Sequence[MeasuredArm]) -> Iterator[str]:
    trained = [arm for arm in arms if arm.is_trained]
    numbers = sorted({arm.num_seeds for arm in trained})
    if numbers and numbers[0] < 3:
        few = "one seed" if numbers[0] == 1 else "two seeds"
        whose = "Each" if numbers == numbers[:1] else "At least one"
        yield (
            f"{whose} trained arm has {few}: what differs is these checkpoints, and how another "
            "seed of the same settings would score is not known. Claims about settings take three "
            "seeds or more."
        )
    if len(numbers) > 1:
        told = ", ".join(f"{arm.name}: {arm.num_seeds}" for arm in trained[:6])
        more = f" and {len(trained) - 6} more" if len(trained) > 6 else ""
        yield (
            f"Arms have different numbers of seeds ({told}{more}). Means are over all of an arm's "
            "seeds, differences over the seeds that both have, and tokens and costs of all seeds."
        )


def _about_questions(arms: Sequence[MeasuredArm]) -> Iterator[str]:
    """Seeds of one arm are averaged over the questions that all of them were asked."""
    for arm in arms:
        asked = max(result.n for result in arm.results.values())
        if arm.table is None:
            yield f"The seeds of {arm.name} share no question, so its interval is unknown."
        elif arm.num_seeds > 1 and arm.table.n < asked:
            yield (
                f"The seeds of {arm.name} were not asked the same questions: its score is over the "
                f"{arm.table.n} that all of them were asked."
            )


def _about_pairs(arms: Sequence[MeasuredArm], pairs: Sequence[Difference]) -> Iterator[str]:
    num_pairs = len(arms) * (len(arms) - 1) // 2
    if len(pairs) < num_pairs:
        compared = {frozenset((pair.one, pair.other)) for pair in pairs}
        lacking = [
            f"{one.name} and {other.name}"
            for number, one in enumerate(arms)
            for other in arms[number + 1 :]
            if frozenset((one.name, other.name)) not in compared
        ]
        yield f"Not compared, having no seed or no question in common: {listed_few(lacking)}."
    left_out = max((pair.num_left_out for pair in pairs), default=0)
    if left_out:
        most = next(pair for pair in pairs if pair.num_left_out == left_out)
        yield (
            "Questions that were not asked of both are left out of differences, at most "
            f"{left_out} ({most.one} and {most.other})."
        )
    unknown = [f"{pair.one} and {pair.other}" for pair in pairs if pair.p_value is None]
    if unknown:
        yield (
            "One question, or one cluster of questions, tells nothing of chance, so it is unknown "
            f"whether these differ: {listed_few(unknown)}."
        )
    if arms and len(arms) > 1 and len({round(arm.score, 12) for arm in arms}) == 1:
        yield (
            "All arms scored the same. Look whether the questions are too easy or too hard, or "
            "whether every arm was evaluated with its own weights."
        )


def _about_variables(outcome: StudyOutcome) -> Iterator[str]:
    for name, values in outcome.variables.items():
        if name.rpartition(".")[2] == "lora_rank" and len(values) > 1:
            alphas = [n for n in outcome.variables if n.rpartition(".")[2] == "lora_alpha"]
            if not alphas:
                yield (
                    "lora_alpha is the same for every lora_rank, so the scale of an adapter, "
                    "alpha / rank, changes with the rank: what differs may be due to either."
                )


def _about_trials(outcome: StudyOutcome, arms: Sequence[MeasuredArm]) -> Iterator[str]:
    trials = [trial for arm in outcome.arms for trial in arm.trials]
    lacking = [t for t in trials if t.result is None or t.status not in ("done", "dropped")]
    if lacking:
        statuses = sorted({trial.status for trial in lacking})
        told = ", ".join(
            f"{sum(t.status == status for t in lacking)} "
            f"{'done but not evaluated' if status == 'done' else status}"
            for status in statuses
        )
        yield f"{len(lacking)} of {len(trials)} trials have no result that counts: {told}."
    dropped = [arm.name for arm in arms if arm.is_dropped]
    if dropped:
        yield (
            f"Dropped early: {listed_few(dropped)}. Their scores are of fewer rounds, so they "
            "stand in the table and in no comparison or claim. What dropped them weighs the chance "
            "of questions, and not how settings vary between seeds."
        )
    known = {arm.name for arm in arms}
    without = [arm.name for arm in outcome.arms if arm.name not in known]
    if without:
        yield f"Without any result, and so without a row: {listed_few(without)}."


def _about_answers(outcome: StudyOutcome, arms: Sequence[MeasuredArm]) -> Iterator[str]:
    shares = []
    failed = []
    for arm in arms:
        for result in arm.results.values():
            for task in result.scored_tasks:
                shares.append((task.flawed_share, arm.name, task))
            if result.num_failed:
                failed.append(f"{arm.name}: {result.num_failed}")
    worst = max(shares, key=lambda one: one[0], default=None)
    if worst is not None and worst[0] > WARN_FLAWED_SHARE:
        _, name, task = worst
        shown = outcome.task_names.get(task.name, task.name)
        yield (
            f"Answers were truncated or malformed, most of {name}: {task.num_flawed} of "
            f"{len(task.samples)} of {shown}. Such scores are of the format as well."
        )
    if failed:
        yield f"Questions that failed count as 0 ({', '.join(dict.fromkeys(failed))})."


def _about_the_winner(outcome: StudyOutcome, arms: Sequence[MeasuredArm]) -> Iterator[str]:
    if len(arms) < 2:
        return
    has_seeds = any(arm.is_trained and arm.num_seeds > 1 for arm in arms)
    what = "The best arm and the best of its seeds were" if has_seeds else "The best arm was"
    said = (
        f"{what} chosen by scores on these questions, so the best score is optimistic, the more so "
        "the more arms there are."
    )
    if (sealed := outcome.sealed) is not None:
        said += (
            f" The sealed test, of other questions and asked of {outcome.sealed_of} alone, is not: "
            f"{sealed.score:.4f} {interval_text(sealed.interval)}, n={sealed.n}."
        )
    yield said
    if outcome.checkpoint == "best":
        yield (
            "Each trial's checkpoint is the best of its rounds by the same questions, which "
            "flatters trials with more rounds."
        )
