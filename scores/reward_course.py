"""Where the rewards of a run went, beside its held-out score: whether what is rewarded is what is
asked for. Pure.

A reward is a means. Where it rises and the score of unseen questions does not, it may be earned in
another way than was meant, which is what the gate is for. Both are compared over the same stretches
of training: this round, all since the run began, and all since its best round.

- The reward rose where its mean rose beyond chance, with the spread between prompts as noise, in
  one of two ways. Either the rises inside the stretch's rounds sum up to more: in each, the last
  half of its steps less the first. Or the last round's last half is above the first round's first
  half, by the prompts that are asked for the first time: the others were chosen by how they had
  been answered, so that a difference between rounds would be one of prompts as well.
- The score did not, where it fell beyond noise, or where it is not higher and surely rose by less
  than half of what the reward did. For that the reward's rise is taken as a share of what lies
  between the least and the highest reward of an answer, which for right and wrong is 1.

The noise of the score is that of the gate, one-sided, with 5 % spread over the rounds so far. The
chance that a reward which stays as it is seems to have risen is spread over them as well: each
round looks anew, at up to three stretches. By simulation such a run, whose score falls, is told of
in some 4 % (tests/test_reward_course.py). It decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import variance
from typing import NamedTuple

from scores.diagnosis import Kind
from scores.distributions import student_t_quantile
from scores.intervals import mean
from scores.results import EvalResult, gate_change
from scores.wording import signed_text
from storage.stored_json import Count, Measure

MIN_RISE = 0.02  # of the range of rewards; a smaller rise is none
CHANCE = 0.025  # that a reward that stays where it is seems to have risen, spread as ALPHA is
ALPHA = 0.05  # that a score that stays where it is seems to have fallen, in all rounds together
MIN_SHARE = 0.5  # of the reward's rise that a score is expected to rise by
MIN_PROMPTS = 2  # or there is no spread to tell chance by


class RewardedGroup(NamedTuple):
    """The rewards of the answers to a prompt."""

    rewards: Sequence[float]
    is_new: bool  # the prompt was not asked before, in what the weights came through


@dataclass(frozen=True)
class PromptRewards:
    """What prompts came to, each with the mean over its answers."""

    mean: Measure
    variance: Measure  # between prompts
    num_prompts: Count


@dataclass(frozen=True)
class RoundRewards:
    """What the rewards of a round came to, in the first and the last half of its steps; a single
    step is both for its new prompts. None where there are too few prompts."""

    first: PromptRewards | None
    last: PromptRewards | None
    new_first: PromptRewards | None
    new_last: PromptRewards | None
    low: Measure  # the least and the highest that an answer was worth
    high: Measure


class RewardSteps(NamedTuple):
    """What a round's steps measured of their rewards."""

    rewards: Sequence[float]  # mean over the answers of a step
    num_learnable: Sequence[int]  # groups of a step whose answers were worth different things


class Course(NamedTuple):
    """Where a round's rewards went, in words, and which of the known problems that shows."""

    said: str
    kinds: tuple[Kind, ...] = ()


def round_rewards(steps: Sequence[Sequence[RewardedGroup]]) -> RoundRewards | None:
    """The rewards of a round's steps; None where no answer has any."""
    every = [one for groups in steps for group in groups for one in group.rewards]
    if not every:
        return None
    half = len(steps) // 2
    first = [group for groups in steps[:half] for group in groups]
    last = [group for groups in steps[half:] for group in groups]
    return RoundRewards(
        first=_prompt_rewards(first),
        last=_prompt_rewards(last),
        new_first=_prompt_rewards([one for one in first or last if one.is_new]),
        new_last=_prompt_rewards([one for one in last if one.is_new]),
        low=min(every),
        high=max(every),
    )


def _prompt_rewards(groups: Sequence[RewardedGroup]) -> PromptRewards | None:
    means = [mean(group.rewards) for group in groups if group.rewards]
    if len(means) < MIN_PROMPTS:
        return None
    return PromptRewards(mean(means), variance(means), len(means))


def reward_course(
    steps: RewardSteps,
    rounds: Sequence[RoundRewards | None],
    lineage: Sequence[EvalResult],
    result: EvalResult,
) -> Course:
    """Say what a round's rewards show.

    `rounds` are those that the weights came through, this one last, and `lineage` the results that
    each of them went on from, the baseline first; `result` is this round's own.
    """
    assert len(rounds) == len(lineage) > 0, "a result before each round"
    if not steps.rewards:
        return Course("what its answers earned was not recorded")
    if not any(steps.num_learnable):
        return Course(
            f"no group of answers had any variance in its rewards (mean {_shown(steps.rewards)}), "
            "so this round learned nothing and the weights are those before it",
            ("no_variance",),
        )
    last = len(lineage) - 1
    best = max(range(last + 1), key=lambda i: (lineage[i].score, i))
    levels = _Levels(ALPHA / len(lineage), CHANCE / len(lineage))
    for begin in dict.fromkeys((last, 0, best)):
        said = _only_reward(rounds[begin:], lineage[begin], result, levels)
        if said is not None:
            return Course(said, ("reward_only",))
    now = rounds[-1]
    if now is None or now.first is None or now.last is None:
        return Course(f"the mean reward is {_shown(steps.rewards)}")
    return Course(
        f"the mean reward went from {now.first.mean:.3g} in the first half of this round's steps "
        f"to {now.last.mean:.3g} in the last"
    )


class _Levels(NamedTuple):
    """What chance is allowed to do in one comparison."""

    alpha: float  # that a score that stays where it is seems to have fallen
    chance: float  # that a reward that does seems to have risen, in either way


def _only_reward(
    rounds: Sequence[RoundRewards | None],
    before: EvalResult,
    result: EvalResult,
    levels: _Levels,
) -> str | None:
    """Says that in these rounds the reward rose and the held-out score did not; None where it
    cannot be said."""
    known = [one for one in rounds if one is not None]
    change = gate_change(result, before, 1 - 2 * levels.alpha)
    if not known or change.interval is None:
        return None
    extent = max(one.high for one in known) - min(one.low for one in known)
    rises = _rises(rounds)
    rise = next((one for one in rises if one.is_rise(extent, levels.chance)), None)
    if rise is None:
        return None
    is_flat = (
        change.mean <= 0 and change.interval.high < MIN_SHARE * rise.least(levels.chance) / extent
    )
    if change.interval.high >= 0 and not is_flat:
        return None
    low, high = (signed_text(one) for one in change.interval)
    return (
        f"the mean reward rose {rise.said}, and the held-out score did not: it was "
        f"{before.score:.4f} and is {result.score:.4f} ({signed_text(change.mean)} [{low}, "
        f"{high}]); the reward may be earned in another way than was meant"
    )


class _Rise(NamedTuple):
    """By how much a mean reward rose, as the sum of differences of such means."""

    pairs: Sequence[tuple[PromptRewards, PromptRewards]]  # earlier, later
    said: str

    @property
    def mean(self) -> float:
        return math.fsum(later.mean - earlier.mean for earlier, later in self.pairs)

    def least(self, chance: float) -> float:
        """What it rose by at least, but for the chance of either way."""
        sides = [side for pair in self.pairs for side in pair]
        stderr = math.sqrt(math.fsum(one.variance / one.num_prompts for one in sides))
        degrees = sum(one.num_prompts - 1 for one in sides)
        return self.mean - student_t_quantile(1 - chance / 2, degrees) * stderr

    def is_rise(self, extent: float, chance: float) -> bool:
        return self.least(chance) > 0 and self.mean > MIN_RISE * extent


def _rises(rounds: Sequence[RoundRewards | None]) -> Iterator[_Rise]:
    """Yield both ways in which the reward may have risen, as far as they can be told."""
    known = [one for one in rounds if one is not None]
    halves = [(one.first, one.last) for one in known]
    within = [(a, b) for a, b in halves if a is not None and b is not None]
    if within:
        said = f"by {_Rise(within, '').mean:.3g} in all inside of the last {len(rounds)} rounds"
        if len(rounds) == 1:
            (first, last), *_ = within
            said = (
                f"from {first.mean:.3g} in the first half of this round's steps to "
                f"{last.mean:.3g} in the last"
            )
        yield _Rise(within, said)
    first, last = rounds[0], rounds[-1]
    if len(rounds) > 1 and first is not None and last is not None:
        old, new = first.new_first, last.new_last
        if old is not None and new is not None:
            said = f"on new prompts from {old.mean:.3g} to {new.mean:.3g}"
            yield _Rise([(old, new)], f"{said} over the last {len(rounds)} rounds")


def _shown(rewards: Sequence[float]) -> str:
    return f"{mean(rewards):.3g}"
