"""How much there is to learn of a row: by its loss, by how often it was answered right, or by how
far its answers are from a teacher's. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

GROUPS_COUNTED = 2  # the last ones: older answers are of other weights
SMALLEST_DISTANCE = 1e-6  # nats a token; where all are at the teacher, all weigh alike
REST_ROUNDS = 2  # that a solved prompt waits
SUSPECT_ROUNDS = 2  # a row is suspected after so many checkpoints found its answer unlikely,
SUSPECT_SHARE = 0.1  # as unlikely as this share of the rows that were measured, and no other one


class CandidateLoss(NamedTuple):
    """Nats per loss token of a row: under the weights that the round starts from, and, where the
    strategy asks for it, under the untouched model."""

    now: float
    before: float | None = None


def learnable(loss: CandidateLoss) -> float:
    """How much there is to learn of a row, in nats per token.

    Its loss, times the square of the share of its loss that training has taken away already. A row
    that is known scores 0, and so does one whose loss training has not lowered: it is not of the
    kind that is being learnt, or its answer is wrong. (After the idea of Mindermann et al. 2022,
    "Prioritized training on points that are learnable, worth learning, and not yet learnt".)
    """
    if not loss.before or loss.before < 0:
        return 0.0
    return loss.now * max(0.0, 1 - loss.now / loss.before) ** 2


# --- by rewards -----------------------------------------------------------------------------------


class PassRate(NamedTuple):
    """How a prompt's last groups of answers went. An answer that is half right counts half."""

    num_right: float  # with parts of answers
    num_tried: int
    num_solved: int  # groups in a row, up to the last one, whose answers were all right
    last_round: int  # that it was sampled in
    num_whole: int | None = None  # answers that are all right; None where none is right in part

    def __str__(self) -> str:
        if self.num_whole is None:
            return f"{self.num_right:.4g} of {self.num_tried} answers right"
        return (
            f"{self.num_whole} of {self.num_tried} answers right, "
            f"{self.num_right:.3g} with partial credit"
        )


class Group(NamedTuple):
    """The rewards of a prompt's answers, sampled together."""

    round: int
    rewards: Sequence[float]


def share_right(reward: float) -> float:
    """A reward as a share of a right answer: 1 and more is right, 0 and less is wrong."""
    return min(max(reward, 0.0), 1.0)


def is_solved(rewards: Sequence[float]) -> bool:
    """Whether all answers of a group are right."""
    return bool(rewards) and min(rewards) >= 1


def has_variance(rewards: Sequence[float]) -> bool:
    """Whether the answers of a group are worth different things, so that there is an advantage."""
    return len(set(rewards)) > 1


def pass_rate(groups: Sequence[Group]) -> PassRate:
    """Of a prompt's groups, the oldest first; there is at least one."""
    counted = [reward for group in groups[-GROUPS_COUNTED:] for reward in group.rewards]
    num_solved = 0
    for group in reversed(groups):
        if not is_solved(group.rewards):
            break
        num_solved += 1
    shares = [share_right(one) for one in counted]
    num_whole = shares.count(1.0) if any(0 < one < 1 for one in shares) else None
    return PassRate(sum(shares), len(counted), num_solved, groups[-1].round, num_whole)


def promise(rate: PassRate | None) -> float:
    """What a prompt is drawn by: the expected variance of right and wrong among its answers.

    Without uncertainty that is p(1-p). Here p has the Beta distribution that follows from the
    answers and a uniform prior, of which the mean of p(1-p) is ab / ((a+b)(a+b+1)): 1/6 for a
    prompt that was not tried, up to 1/4 for one that is right half the time, less the surer it is
    that it is always right or always wrong, and never 0.
    """
    right, tried = (0.0, 0) if rate is None else (rate.num_right, rate.num_tried)
    a, b = 1 + right, 1 + tried - right
    return a * b / ((a + b) * (a + b + 1))


def is_resting(rate: PassRate, round_no: int) -> bool:
    """Whether a prompt is left alone in a round: it was solved in its last two groups, the newest
    not long ago."""
    return rate.num_solved >= GROUPS_COUNTED and round_no - rate.last_round <= REST_ROUNDS


# --- by a teacher ---------------------------------------------------------------------------------


class Distance(NamedTuple):
    """How far a row's answers are from the teacher's: what it is drawn by, and why."""

    weight: float
    said: str


def distance_of(example_id: str, distances: Mapping[str, float]) -> Distance:
    """A row's distance, of those that are known: the reverse KL of its answers to the teacher when
    they were last sampled, in nats a token. A row without answers weighs what the others do on
    average.

    The KL is an estimate that may be below 0; no row weighs less than a tenth of the mean.
    """
    mean = sum(distances.values()) / len(distances) if distances else 1.0
    mean = max(mean, SMALLEST_DISTANCE)
    if (known := distances.get(example_id)) is None:
        return Distance(mean, "how far it is from the teacher is not known yet")
    said = f"reverse KL {known:.3g} nats a token to the teacher when it was last answered"
    return Distance(max(known, mean / 10), said)
