"""What the curves of a round say, in one sentence: learning, stuck, exploding, overfitting. Pure.

The rules are rules of thumb with stated bounds; they explain a round and decide nothing. Losses are
in nats per loss token. Batches differ, and later rounds train on harder rows, so training losses
are compared within a round only, by the trend over its steps with its error; held-out losses, which
are of the same rows, with the rounds that the weights came from, row by row.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scores.distributions import student_t_quantile
from scores.intervals import Interval, estimate, mean
from scores.results import EvalResult, HeldOutLoss

MIN_STEPS = 4  # of a round, before its trend is looked at
MIN_STEPS_STUCK = 8
STUCK_FRAC = 0.1  # of a loss: a smaller fall in a round, surely, is none
STUCK_NATS = 0.5  # below this a loss is low, whether it changes or not
EXPLODING_FACTOR = 1.5  # of a round's end over its start
EXPLODING_NATS = 0.1  # a smaller rise is none
RISING_FRAC = 0.02  # of a held-out loss: a smaller rise is none
MIN_ROWS = 5  # of a held-out file, before its rise is named
MIN_QUESTIONS = 5  # of a topic, before it is named
MAX_TOPICS = 3
SURE = 0.99  # one-sided, of every comparison
DIVERGED_STEPS = 20  # in a row; a spike that a run recovers from is shorter
NUM_FIRST_STEPS = 5
DIVERGED_FACTOR = 2.0  # of the round's first steps


class HeldOutPoint(NamedTuple):
    """A held-out loss measured inside a round, after `step` steps of the run."""

    name: str
    step: int
    nll: float


class Curves(NamedTuple):
    """What training recorded in a round."""

    losses: Sequence[float]  # training loss of each step
    held_out: Sequence[HeldOutPoint]
    lr: float  # of the last step
    lora_rank: int


def diagnose(curves: Curves, lineage: Sequence[EvalResult], result: EvalResult) -> str:
    """Say what a trained round's curves show.

    `lineage` are the results of the rounds that its weights came from, the baseline first.
    """
    training = _training(curves)
    problems = [training.problem]
    if training.problem is None:  # else a held-out loss rises for that reason
        problems = [_rise(loss, lineage, curves.held_out) for loss in result.held_out]
    problems.append(_unlearned_topics(lineage[0], result))
    found = [problem for problem in problems if problem is not None] or [training.sentence]
    sentence = "; ".join(found)
    return sentence[0].upper() + sentence[1:] + "."


def divergence(losses: Sequence[float], vocab_size: int) -> str | None:
    """What shows that a round's training loss, in nats per token, diverges; None where nothing.

    It does when the last steps are, on average, worse than a blind guess among the vocabulary,
    which is ln(vocab_size), and twice as bad as the round's first steps. Rows that contradict what
    was learned begin that high and fall.
    """
    if len(losses) < NUM_FIRST_STEPS + DIVERGED_STEPS:
        return None
    first, last = mean(losses[:NUM_FIRST_STEPS]), mean(losses[-DIVERGED_STEPS:])
    blind_guess = math.log(vocab_size)
    if last <= max(DIVERGED_FACTOR * first, blind_guess):
        return None
    return (
        f"{last:.2f} nats a token over the last {DIVERGED_STEPS} steps, {first:.2f} over the "
        f"round's first ones, and a blind guess has {blind_guess:.2f}"
    )


def last_quarter(losses: Sequence[float]) -> float:
    """Mean loss over the last quarter of a round's steps, at least one."""
    return mean(losses[-max(1, len(losses) // 4) :])


class _Training(NamedTuple):
    sentence: str
    problem: str | None


def _training(curves: Curves) -> _Training:
    losses, n = curves.losses, len(curves.losses)
    if n < MIN_STEPS:
        return _Training(f"the training loss is {mean(losses):.3f} nats a token", None)
    first, last = mean(losses[: max(1, n // 4)]), last_quarter(losses)
    growth = _trend([math.log(max(loss, 1e-6)) for loss in losses])  # explosions are exponential
    is_rise = growth.change > student_t_quantile(0.95, n - 2) * growth.stderr
    if is_rise and last > max(EXPLODING_FACTOR * first, first + EXPLODING_NATS):
        problem = (
            f"the training loss rose from {first:.3f} to {last:.3f} nats a token: the learning "
            f"rate {curves.lr:.3g} is too high, or rows of this round are bad"
        )
        return _Training(problem, problem)
    trend = _trend(losses)
    most_fallen = student_t_quantile(SURE, n - 2) * trend.stderr - trend.change
    is_flat = most_fallen < STUCK_FRAC * mean(losses)
    if n >= MIN_STEPS_STUCK and last > STUCK_NATS and is_flat:
        problem = (
            f"the training loss stayed at {mean(losses):.3f} nats a token for {n} steps: the "
            f"learning rate {curves.lr:.3g} or lora_rank {curves.lora_rank} is too low, or these "
            "rows have no more to teach"
        )
        return _Training(problem, problem)
    moved = f"went from {first:.3f} to {last:.3f} nats a token in this round"
    return _Training(f"the training loss {moved}", None)


class _Trend(NamedTuple):
    change: float
    stderr: float


def _trend(losses: Sequence[float]) -> _Trend:
    """Change over the round by the least-squares line through its steps, and its error."""
    n, centre = len(losses), mean(losses)
    offsets = [step - (n - 1) / 2 for step in range(n)]
    squares = math.fsum(offset * offset for offset in offsets)
    slope = math.fsum(o * (loss - centre) for o, loss in zip(offsets, losses, strict=True))
    slope /= squares
    residuals = [loss - centre - slope * o for o, loss in zip(offsets, losses, strict=True)]
    variance = math.fsum(residual * residual for residual in residuals) / (n - 2)
    return _Trend(slope * (n - 1), math.sqrt(variance / squares) * (n - 1))


def _rise(
    loss: HeldOutLoss, lineage: Sequence[EvalResult], points: Sequence[HeldOutPoint]
) -> str | None:
    """Where a held-out loss is above its lowest, beyond noise: overfitting."""
    if loss.n < MIN_ROWS:
        return None
    lows: list[tuple[float, str]] = []
    before = [(one, r.round) for r in lineage for one in r.held_out if one.name == loss.name]
    if before:
        one, number = min(before, key=lambda pair: pair[0].nll)
        if _is_higher(loss, one):
            lows.append((one.nll, f"after round {number}" if number else "untrained"))
    lows += [(p.nll, f"after {p.step} steps") for p in points if p.name == loss.name]
    lows = [low for low in lows if loss.nll > low[0] * (1 + RISING_FRAC)]
    if not lows:
        return None
    lowest, when = min(lows)
    return (
        f"the held-out loss of {loss.name} rose to {loss.nll:.3f} nats a token from {lowest:.3f} "
        f"{when}: overfitting, so fewer steps, a lower rate or more data"
    )


def _is_higher(now: HeldOutLoss, before: HeldOutLoss) -> bool:
    """Whether a loss on the same rows rose beyond the error of its paired change.

    The change is a ratio of sums over rows (Cochran 1977, eq. 2.39).
    """
    was = {row.id: row.nll_sum for row in before.rows}
    rows = [(row.nll_sum - was[row.id], row.num_loss_tokens) for row in now.rows]
    num_tokens, n = sum(tokens for _, tokens in rows), len(rows)
    change = math.fsum(moved for moved, _ in rows) / num_tokens
    squares = math.fsum((moved - change * tokens) ** 2 for moved, tokens in rows)
    stderr = math.sqrt(squares * n / (n - 1)) / num_tokens
    return change > student_t_quantile(SURE, n - 1) * stderr


def _topic_scores(result: EvalResult) -> dict[str, list[float]]:
    """Topic -> the score of each of its questions."""
    topics: dict[str, list[float]] = defaultdict(list)
    for task in result.scored_tasks:
        of_question = {sample.id: sample.topic for sample in task.samples}
        for question, score in task.scores.items():
            if (topic := of_question[question]) is not None:
                topics[topic].append(score)
    return topics


def _unlearned_topics(baseline: EvalResult, result: EvalResult) -> str | None:
    before, after = _topic_scores(baseline), _topic_scores(result)
    asked = [topic for topic, scores in sorted(after.items()) if len(scores) >= MIN_QUESTIONS]
    unlearned = [
        topic
        for topic in asked
        if sum(after[topic]) <= sum(before[topic]) and mean(after[topic]) < 0.5
    ]
    if not unlearned:
        return None
    if len(unlearned) == len(asked) > 1:
        return f"nothing was learned in any of {len(asked)} topics"
    shown = ", ".join(
        f"{topic} ({sum(after[topic]):g} of {len(after[topic])} right, "
        f"{sum(before[topic]):g} untrained)"
        for topic in unlearned[:MAX_TOPICS]
    )
    more = len(unlearned) - MAX_TOPICS
    return f"nothing was learned in {shown}" + (f" and {more} topics more" if more > 0 else "")


# --- topics ---------------------------------------------------------------------------------------


class TopicReport(NamedTuple):
    """How one topic stands after a round; `interval` is at 95 %."""

    topic: str
    score: float
    interval: Interval | None
    n: int  # questions
    change: float | None  # since the round that the weights came from
    num_added: int  # examples of the topic that the round drew


def topic_reports(
    result: EvalResult, before: EvalResult | None, added: Mapping[str, int]
) -> list[TopicReport]:
    """The topics of the scored questions, the weakest first; `added` are the examples drawn."""
    earlier = {} if before is None else _topic_scores(before)
    reports = []
    for topic, scores in _topic_scores(result).items():
        known = estimate(scores)
        change = mean(scores) - mean(earlier[topic]) if topic in earlier else None
        reports.append(
            TopicReport(topic, known.mean, known.interval, known.n, change, added.get(topic, 0))
        )
    return sorted(reports, key=lambda report: (report.score, report.topic))
