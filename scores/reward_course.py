"""Where the rewards of a round went, beside its held-out score: whether what is rewarded is what is
asked for. Pure.

A reward is a means. Where it rises and the score of unseen questions does not, it may be earned in
another way than was meant, which is what the gate is for. Steps have other prompts each, so a rise
is one beyond twice its standard error. The rules are rules of thumb, and decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev
from typing import NamedTuple

from scores.diagnosis import Kind
from scores.intervals import mean
from scores.results import EvalResult

MIN_RISE = 0.02  # of a mean reward; a smaller one is none
STDERRS = 2.0  # beyond which a rise is no chance
MIN_STEPS = 2  # on either side of a comparison


class RewardSteps(NamedTuple):
    """What was measured of rewards, step by step: in a round, and in the one that it went on from
    (of the baseline nothing)."""

    rewards: Sequence[float]  # mean over the answers of a step
    rewards_before: Sequence[float]
    num_learnable: Sequence[int]  # groups of a step whose answers were worth different things


class Course(NamedTuple):
    """Where a round's rewards went, in words, and which of the known problems that shows."""

    said: str
    kinds: tuple[Kind, ...] = ()


def reward_course(steps: RewardSteps, before: EvalResult, result: EvalResult) -> Course:
    """Say what a round's rewards show. `before` is the result of the weights that it went on from,
    `result` its own."""
    if not steps.rewards:
        return Course("what its answers earned was not recorded")
    if not any(steps.num_learnable):
        return Course(
            f"no group of answers had any variance in its rewards (mean {_mean(steps.rewards)}), "
            "so this round learned nothing and the weights are those before it",
            ("no_variance",),
        )
    half = len(steps.rewards) // 2
    over_round = _Moved(steps.rewards[:half] or steps.rewards, steps.rewards[half:])
    since = _Moved(steps.rewards_before, steps.rewards)
    went = (
        f"the mean reward went from {_mean(over_round.before)} in the first half of this round's "
        f"steps to {_mean(over_round.now)} in the last"
    )
    if len(steps.rewards) < 2:
        went = f"the mean reward is {_mean(steps.rewards)}"
    for moved, where in (
        (since, f"in round {before.round} to {{}} in this one"),
        (over_round, "in the first half of this round's steps to {} in the last"),
    ):
        if moved.has_risen and result.score <= before.score:
            rose = f"the mean reward rose from {_mean(moved.before)} {where}"
            return Course(
                f"{rose.format(_mean(moved.now))}, and the held-out score did not: it was "
                f"{before.score:.4f} and is {result.score:.4f}; the reward may be earned in "
                "another way than was meant",
                ("reward_only",),
            )
    return Course(went)


class _Moved(NamedTuple):
    before: Sequence[float]
    now: Sequence[float]

    @property
    def has_risen(self) -> bool:
        if min(len(self.before), len(self.now)) < MIN_STEPS:
            return False
        change = mean(self.now) - mean(self.before)
        variance = sum(stdev(one) ** 2 / len(one) for one in self)
        return change > max(MIN_RISE, STDERRS * math.sqrt(variance))


def _mean(rewards: Sequence[float]) -> str:
    return f"{mean(rewards):.3g}"
