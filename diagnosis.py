"""What the curves of a round say, in one sentence: learning, stuck, exploding, overfitting. Pure.

The rules are rules of thumb with stated bounds; they explain a round and decide nothing. Losses are
in nats per loss token. Batches differ, so only averages over a quarter of a round's steps are
compared, and held-out losses row by row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from eval_result import EvalResult, HeldOutLoss, topic_scores
from eval_stats import mean

MIN_STEPS = 8  # of the run, before a loss can be called stuck
MIN_STEPS_WITHIN = 4  # of a round, before its start and its end are compared
STUCK_FRAC = 0.9  # of the untrained model's loss, above which it counts as unchanged
STUCK_NATS = 0.5  # below this a loss is low, whether it changes or not
EXPLODING_FACTOR = 1.5  # of a round's end over its start
EXPLODING_NATS = 0.1  # a smaller rise is none
RISING_FRAC = 0.02  # of a held-out loss, where there are no rows to compare
MIN_QUESTIONS = 5  # of a topic, before it is named
MAX_TOPICS = 3


class HeldOutPoint(NamedTuple):
    """A held-out loss measured inside a round, after `step` steps of the run."""

    name: str
    step: int
    nll: float


class Curves(NamedTuple):
    """What training recorded up to the end of a round."""

    losses: Mapping[int, Sequence[float]]  # round -> training loss of each of its steps
    held_out: Sequence[HeldOutPoint]  # inside this round
    lr: float  # of this round's last step
    lora_rank: int


def diagnose(curves: Curves, earlier: Sequence[EvalResult], result: EvalResult) -> str:
    """Say what a trained round's curves show; `earlier` are the results before it, oldest first."""
    training = _training(curves, result.round)
    problems = [training.problem]
    if training.problem is None:  # else a held-out loss rises for that reason
        problems = [_rise(loss, earlier, curves.held_out) for loss in result.held_out]
    problems.append(_unlearned_topics(earlier[0], result))
    found = [problem for problem in problems if problem is not None] or [training.sentence]
    sentence = "; ".join(found)
    return sentence[0].upper() + sentence[1:] + "."


def last_quarter(losses: Sequence[float]) -> float:
    """Mean loss over the last quarter of a round's steps, at least one."""
    return mean(losses[-max(1, len(losses) // 4) :])


def _first_quarter(losses: Sequence[float]) -> float:
    return mean(losses[: max(1, len(losses) // 4)])


class _Training(NamedTuple):
    sentence: str
    problem: str | None


def _training(curves: Curves, round_no: int) -> _Training:
    losses = curves.losses[round_no]
    untrained = _first_quarter(curves.losses[min(curves.losses)])
    first, last = _first_quarter(losses), last_quarter(losses)
    num_steps = sum(map(len, curves.losses.values()))
    within = first if len(losses) >= MIN_STEPS_WITHIN else last
    lowest, since = min((within, f"{within:.3f}"), (untrained, f"{untrained:.3f} untrained"))
    if last > max(EXPLODING_FACTOR * lowest, lowest + EXPLODING_NATS):
        problem = (
            f"the training loss rose from {since} to {last:.3f} nats a token: the learning rate "
            f"{curves.lr:.3g} is too high, or rows of this round are bad"
        )
        return _Training(problem, problem)
    if num_steps >= MIN_STEPS and last > max(STUCK_NATS, STUCK_FRAC * untrained):
        problem = (
            f"the training loss is stuck at {last:.3f} nats a token, {untrained:.3f} untrained: "
            f"the learning rate {curves.lr:.3g} or lora_rank {curves.lora_rank} is too low"
        )
        return _Training(problem, problem)
    if len(losses) >= MIN_STEPS_WITHIN:
        moved = f"went from {first:.3f} to {last:.3f} nats a token in this round"
    else:
        moved = f"is {last:.3f} nats a token, {untrained:.3f} untrained"
    return _Training(f"the training loss {moved}", None)


def _rise(
    loss: HeldOutLoss, earlier: Sequence[EvalResult], points: Sequence[HeldOutPoint]
) -> str | None:
    """Where a held-out loss is above its lowest, beyond noise: overfitting."""
    lows: list[tuple[float, str]] = []
    before = [(one, r.round) for r in earlier for one in r.held_out if one.name == loss.name]
    if before:
        one, number = min(before, key=lambda pair: pair[0].nll)
        if _is_higher(loss, one):
            lows.append((one.nll, f"after round {number}" if number else "untrained"))
    for point in points:
        if point.name == loss.name and loss.nll > point.nll * (1 + RISING_FRAC):
            lows.append((point.nll, f"after {point.step} steps"))
    if not lows:
        return None
    lowest, when = min(lows)
    return (
        f"the held-out loss of {loss.name} rose to {loss.nll:.3f} nats a token from {lowest:.3f} "
        f"{when}: overfitting, so fewer steps, a lower rate or more data"
    )


def _is_higher(now: HeldOutLoss, before: HeldOutLoss) -> bool:
    """Whether a loss on the same rows rose by over two standard errors of its paired change.

    The change is a ratio of sums over rows (Cochran 1977, eq. 2.39).
    """
    was = {row.id: row.nll_sum for row in before.rows}
    rows = [(row.nll_sum - was[row.id], row.num_loss_tokens) for row in now.rows]
    num_tokens, n = sum(tokens for _, tokens in rows), len(rows)
    change = math.fsum(moved for moved, _ in rows) / num_tokens
    if n < 2:
        return False
    squares = math.fsum((moved - change * tokens) ** 2 for moved, tokens in rows)
    return change > 2 * math.sqrt(squares * n / (n - 1)) / num_tokens


def _unlearned_topics(baseline: EvalResult, result: EvalResult) -> str | None:
    before, after = topic_scores(baseline.samples), topic_scores(result.samples)
    asked = [topic for topic, score in after.items() if score.n >= MIN_QUESTIONS]
    unlearned = [
        topic
        for topic in asked
        if after[topic].num_failures >= before[topic].num_failures
        and after[topic].num_failures > after[topic].n / 2
    ]
    if not unlearned:
        return None
    if len(unlearned) == len(asked) > 1:
        return f"nothing was learned in any of {len(asked)} topics"
    shown = ", ".join(
        f"{topic} ({after[topic].n - after[topic].num_failures:g} of {after[topic].n} right, "
        f"{before[topic].n - before[topic].num_failures:g} untrained)"
        for topic in unlearned[:MAX_TOPICS]
    )
    more = len(unlearned) - MAX_TOPICS
    return f"nothing was learned in {shown}" + (f" and {more} topics more" if more > 0 else "")
