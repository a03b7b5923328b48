"""The most that the rows of a run come to, whatever its rounds draw.

What the first round takes, and what later ones replay, is the start of a shuffle that is known. Of
what is mined it is known how much: where none of it can come twice in a round, it is counted as the
longest rows, else as the longest one again and again.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data_selector import Mining
from loop.planning.methods import words_for
from loop.planning.plan import Plan
from rows.shuffles import walk
from scores.learnable import SUSPECT_ROUNDS, SUSPECT_SHARE
from scores.measures import RL


class Lengths(NamedTuple):
    """Something of each row, as tokens of it, in the order of its table."""

    train: Sequence[int]
    pool: Sequence[int]


class Taken(NamedTuple):
    """What the rows of all steps come to: at the most, and were those that are mined mean ones."""

    most: int
    mean: int


def taken_in_steps(plan: Plan, lengths: Lengths) -> Taken:
    """What the rows of all steps come to."""
    drawn_from = lengths.pool or lengths.train
    mean = sum(drawn_from) / len(drawn_from)
    mined = heapq.nlargest(_most_mined(plan), drawn_from)
    of_walk = dict(zip(plan.train.examples.ids, lengths.train, strict=True))
    most = num_in_all = known = cursor = 0
    for number, (num_walked, num_mined) in enumerate(_slots(plan)):
        taken = walk(plan.train.examples, plan.config.seed, cursor, num_walked, plan.train_weights)
        known += sum(of_walk[one.id] for one in taken)
        cursor += num_walked
        num_in_all += num_mined
        if num_mined:
            is_once = _draws_once(plan, num_mined, num_before=number)
            most += sum(mined[:num_mined]) if is_once else num_mined * mined[0]
    return Taken(known + most, known + round(num_in_all * mean))


class _Slots(NamedTuple):
    """How many rows of a round come from the shuffle of the training rows, and are mined."""

    num_walked: int
    num_mined: int


def _slots(plan: Plan) -> Iterator[_Slots]:
    """Yield those of each round."""
    has_pool = bool(len(plan.pool.examples))
    num_taken = 0
    while num_taken < plan.steps.total:
        num_slots = plan.steps.of_next_round(num_taken) * plan.config.batch_size
        slots = plan.mining.slots(num_slots, has_pool)
        is_first = num_taken == 0
        num_walked = num_slots if is_first else slots.num_replay
        yield _Slots(num_walked, num_slots - num_walked)
        num_taken += plan.steps.of_next_round(num_taken)


def _most_mined(plan: Plan) -> int:
    return max((one.num_mined for one in _slots(plan)), default=0)


def _draws_once(plan: Plan, num_mined: int, num_before: int) -> bool:
    """Whether no row can be mined twice in a round after so many others: there are as many that do
    not wait, for their loss, as a suspect, or as a prompt that is solved."""
    mining, has_pool = plan.mining, bool(len(plan.pool.examples))
    num_rows = len(plan.pool.examples) if has_pool else len(plan.train.examples)
    if words_for(plan.config) is RL:  # any number of prompts may be solved
        return False
    slots = mining.slots(plan.steps.per_round * plan.config.batch_size, has_pool)
    num_waiting = _most_waiting(mining, slots.num_hard, num_rows, num_before)
    return num_mined <= num_rows - num_waiting


def _most_waiting(mining: Mining, num_hard: int, num_rows: int, num_before: int) -> int:
    if not mining.needs_losses:
        return 0
    num_measured = min(mining.num_to_measure(num_hard), num_rows)
    num_suspects = math.floor(SUSPECT_SHARE * num_measured * num_before / SUSPECT_ROUNDS)
    return math.floor(mining.noise_cap * num_measured) + num_suspects
