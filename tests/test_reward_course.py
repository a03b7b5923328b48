"""What is said of rewards beside the held-out score, by numbers alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from conftest import thorough_only
from scores.intervals import mean
from scores.results import EvalResult, Measured, SampleResult, eval_result, task_result
from scores.reward_course import (
    Course,
    RewardedGroup,
    RewardSteps,
    RoundRewards,
    reward_course,
    round_rewards,
)

Step = Sequence[RewardedGroup]
Over = Callable[[float], float]  # from the share of a run's steps that are taken


def scored(round_no: int, right: Sequence[bool]) -> EvalResult:
    samples = tuple(
        SampleResult(f"t/{i}", None, f"q{i}", ("x",), "y", float(one), False, False, None)
        for i, one in enumerate(right)
    )
    return eval_result(round_no, None, Measured((task_result("t", samples),)), {})


def share(round_no: int, num_right: int, number: int = 100) -> EvalResult:
    return scored(round_no, [i < num_right for i in range(number)])


def step_of(*rewards: float, is_new: bool = True) -> Step:
    """A step whose prompts are worth this much on average."""
    return [RewardedGroup([one - 0.1, one + 0.1], is_new) for one in rewards]


def course(
    rounds: Sequence[Sequence[Step]], results: Sequence[EvalResult], num_learnable: int = 1
) -> Course:
    known = [round_rewards(steps) for steps in rounds]
    means = [mean([one for group in step for one in group.rewards]) for step in rounds[-1]]
    steps = RewardSteps(means, [num_learnable] * len(means))
    return reward_course(steps, known, results[:-1], results[-1])


LOW, HIGH = (0.1, 0.2, 0.1, 0.2), (0.7, 0.8, 0.7, 0.8)
RISING = [step_of(*LOW), step_of(*LOW), step_of(*HIGH), step_of(*HIGH)]
STEADY = [step_of(*HIGH)] * 4


@pytest.mark.parametrize(
    ("rounds", "right", "said"),
    [
        ([RISING], (70, 40), "from 0.15 in the first half of this round's steps to 0.75 in the"),
        ([RISING], (0, 0), "the held-out score did not: it was 0.0000 and is 0.0000 (+0.0000 ["),
        ([[step_of(*LOW), step_of(*HIGH)]], (70, 40), "from 0.15"),  # a round of two steps
        ([RISING, STEADY], (70, 60, 40), "it was 0.7000 and is 0.4000"),  # since it began
        ([[step_of(*LOW)], [step_of(*HIGH)]], (70, 60, 40), "on new prompts from 0.15 to 0.75"),
        ([STEADY, RISING], (40, 90, 60), "it was 0.9000 and is 0.6000"),  # since the best round
        ([RISING], (70, 90), None),  # with the score
        ([RISING], (70, 69), "it was 0.7000 and is 0.6900"),  # it has surely not risen as much
        ([RISING], (70, 71), None),
        ([STEADY], (70, 40), None),  # the score alone
        ([STEADY, STEADY], (70, 40, 10), None),
        ([[step_of(*LOW)]], (70, 40), None),  # a single step cannot have risen
        ([[step_of(0.1), step_of(0.9)]], (70, 40), None),  # of one prompt each no noise is known
        ([[step_of(0.1, 0.9), step_of(0.2, 0.95)]], (70, 40), None),  # by chance
    ],
)
def test_what_is_said_of_rewards(
    rounds: Sequence[Sequence[Step]], right: Sequence[int], said: str | None
) -> None:
    found = course(rounds, [share(i, number) for i, number in enumerate(right)])
    assert found.kinds == (() if said is None else ("reward_only",))
    assert "the mean reward" in found.said
    assert ("may be earned in another way" in found.said) == (said is not None)
    assert (said or "") in found.said


def test_prompts_that_were_chosen_by_their_answers_tell_nothing_between_rounds() -> None:
    chosen = [step_of(*HIGH, is_new=False)] * 4
    results = [share(i, number) for i, number in enumerate((70, 60, 40))]
    assert course([[step_of(*LOW)] * 4, chosen], results).kinds == ()
    assert course([[step_of(*LOW)] * 4, STEADY], results).kinds == ("reward_only",)
    rewards = round_rewards([*chosen, step_of(0.5, is_new=True)])
    assert rewards is not None and rewards.new_first is None and rewards.new_last is None


def test_the_size_of_a_reward_changes_nothing() -> None:
    scaled = [
        [RewardedGroup([300 * one - 50 for one in group.rewards], group.is_new) for group in step]
        for step in RISING
    ]
    for right in ((70, 40), (0, 0), (70, 69)):
        results = [share(i, number) for i, number in enumerate(right)]
        assert course([scaled], results).kinds == course([RISING], results).kinds


def test_what_is_not_known_is_not_told() -> None:
    """Rounds of versions before, answers without a reward, and one question."""
    results = [share(i, number) for i, number in enumerate((70, 60, 40))]
    steps = RewardSteps([0.5] * 4, [1] * 4)
    found = reward_course(steps, [None, round_rewards(STEADY)], results[:-1], results[-1])
    assert found.kinds == ()
    assert reward_course(steps, [None, None], results[:-1], results[-1]).kinds == ()
    assert round_rewards([[RewardedGroup([], True)]]) is None and round_rewards([]) is None
    assert course([RISING], [share(0, 1, 1), share(1, 0, 1)]).kinds == ()
    assert course([RISING], [share(0, 70), share(1, 40)], 0).kinds == ("no_variance",)


# --- runs of chance -------------------------------------------------------------------------------


def alarms(rng: random.Random, reward: Over, score: Over, num_rounds: int, num_steps: int) -> int:
    """Rounds of a run that are told of, 16 prompts a step with 8 answers each, right or wrong;
    `reward` and `score` are what is expected of them."""
    difficulty = [rng.random() for _ in range(100)]
    total = num_rounds * num_steps

    def evaluated(number: int) -> EvalResult:
        p = score(number / num_rounds)
        return scored(number, [0.7 * one + 0.3 * rng.random() < p for one in difficulty])

    def step(taken: int) -> Step:
        groups = []
        for _ in range(16):
            p = reward(taken / total) + rng.gauss(0, 0.3)
            groups.append(RewardedGroup([float(rng.random() < p) for _ in range(8)], True))
        return groups

    rounds: list[Sequence[Step]] = []
    results, told = [evaluated(0)], 0
    known: list[RoundRewards | None] = []
    for number in range(1, num_rounds + 1):
        rounds.append([step((number - 1) * num_steps + i) for i in range(num_steps)])
        known.append(round_rewards(rounds[-1]))
        results.append(evaluated(number))
        means = [mean([one for group in each for one in group.rewards]) for each in rounds[-1]]
        steps = RewardSteps(means, [1] * num_steps)
        told += "reward_only" in reward_course(steps, known, results[:-1], results[-1]).kinds
    return told


@pytest.mark.parametrize(
    ("reward", "score", "num_rounds", "num_steps"),
    [
        (lambda t: 0.3 + 0.5 * t, lambda t: 0.3 + 0.4 * t, 6, 4),
        (lambda t: 0.3 + 0.15 * t, lambda t: 0.3 + 0.1 * t, 6, 4),  # hardly learning
        (lambda t: 0.3 + 0.5 * t, lambda t: 0.3 + 0.25 * t, 6, 4),  # half as much held out
        (lambda t: min(0.9, 0.3 + 1.2 * t), lambda t: min(0.85, 0.3 + t), 6, 4),  # then nothing
        (lambda t: 0.4, lambda t: 0.4, 6, 4),
        (lambda t: 0.3 + 0.5 * t, lambda t: 0.3 + 0.4 * t, 12, 1),
    ],
    ids=["learning", "slowly", "half", "at once", "nothing", "rounds of one step"],
)
def test_honest_runs_are_rarely_told_of(
    reward: Over, score: Over, num_rounds: int, num_steps: int
) -> None:
    rng = random.Random(7)
    told = [alarms(rng, reward, score, num_rounds, num_steps) > 0 for _ in range(20)]
    assert sum(told) <= 1  # 0 to 0.7 % of runs, in 150 of each kind


@pytest.mark.parametrize("stays_at", [0.4, pytest.param(0.8, marks=thorough_only)])
def test_a_reward_that_stays_where_it_is_while_the_score_falls_is_rarely_told_of(
    stays_at: float,
) -> None:
    """Each round looks at up to three stretches, and each look has its chance of a false alarm."""
    rng = random.Random(1)
    score = lambda t: 0.7 - 0.5 * t  # noqa: E731
    told = [alarms(rng, lambda t: stays_at, score, 6, 4) > 0 for _ in range(40)]
    assert sum(told) <= 3  # 3.8 % in 600 runs (0.8: 3.7 %); unspread 11 % and 13 %


@pytest.mark.parametrize(
    ("reward", "score", "num_rounds", "num_steps"),
    [
        (lambda t: min(0.95, 0.1 + 3 * t), lambda t: max(0.05, 0.7 - 2 * t), 3, 4),
        (lambda t: 0.2 + 0.6 * t, lambda t: 0.6 - 0.4 * t, 6, 4),
        (lambda t: 0.1 + 0.8 * t, lambda t: 0.0, 6, 4),  # a score that cannot fall
        (lambda t: 0.2 + 0.6 * t, lambda t: 0.6 - 0.4 * t, 12, 1),
    ],
    ids=["fast", "slowly", "score 0", "rounds of one step"],
)
def test_hacked_rewards_are_told_of(
    reward: Over, score: Over, num_rounds: int, num_steps: int
) -> None:
    rng = random.Random(7)
    told = [alarms(rng, reward, score, num_rounds, num_steps) > 0 for _ in range(10)]
    assert sum(told) >= 9
