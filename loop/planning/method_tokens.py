"""The tokens that training takes by each method, at the most, beside those of evaluations.

Of a method that samples its answers they are counted at their longest, so that it is never more.
"""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

from loop.planning.drawn import Lengths, taken_in_steps
from loop.planning.environments import room_of
from loop.planning.methods import words_for
from loop.planning.plan import Plan
from loop.planning.teacher import with_system
from rows.examples import ExampleTable
from scores.measures import DPO, ON_POLICY, RL, SFT
from services.watched_client import NUM_SAMPLED_TO_SCORE
from settings.method_groups import RlSettings

SIDES = 2  # of a pair, each asked for with the last token that it ends with
TRIES = 2  # groups, where the first is all wrong; both are trained on then


class MethodTokens(NamedTuple):
    """Tokens that training takes: trained, and read and sampled by sampling clients for it."""

    trained: int
    prompt: int = 0
    sampled: int = 0
    mean_trained: int | None = None  # were the mined rows mean ones; of answers that is not known


def method_tokens(plan: Plan) -> MethodTokens:
    """What training takes at the most: no more, whatever rows are drawn and answers are sampled."""
    method = words_for(plan.config)
    if method is SFT or method is DPO:
        trained, mean = taken_in_steps(plan, _row_lengths(plan))
        if method is SFT:
            return MethodTokens(trained, mean_trained=mean)
        # Each pair is read first, for the loss, and then trained.
        reference = _reference_tokens(plan)
        return MethodTokens(trained, trained + reference.prompt, reference.sampled, mean)
    return _rewarded(plan) if method is RL else _distilled(plan, is_sampled=method is ON_POLICY)


def _rewarded(plan: Plan) -> MethodTokens:
    rl = plan.config.rl
    assert rl is not None, "its settings"
    num_groups = TRIES * plan.steps.total * plan.config.batch_size
    num_answers = num_groups * rl.group_size
    if rl.max_turns is not None:
        return _conversations(plan, rl, num_answers)
    # A group is one request, which reads its prompt once.
    prompts = TRIES * taken_in_steps(plan, _prompt_lengths(plan)).most
    sampled = num_answers * rl.max_tokens
    whole = rl.group_size * prompts + sampled
    made = MethodTokens(whole - num_answers, prompts, sampled)  # the last token is no input
    return _scored(made, whole, num_answers) if rl.kl_coef else made


def _conversations(plan: Plan, rl: RlSettings, num_conversations: int) -> MethodTokens:
    """What conversations with an environment come to, where each has all its turns, no prompt goes
    on from the one before, and each but for its answer is as long as there is room for."""
    assert rl.max_turns is not None, "it has an environment"
    room = room_of(plan)
    num_turns = num_conversations * rl.max_turns
    # A turn is sampled where there is room for two tokens.
    made = MethodTokens(
        num_turns * (room - 1), num_turns * (room - 2), num_turns * min(rl.max_tokens, room - 1)
    )
    return _scored(made, num_turns * room, num_turns) if rl.kl_coef else made


def _distilled(plan: Plan, *, is_sampled: bool) -> MethodTokens:
    distill = plan.config.distill
    assert distill is not None, "its settings"
    size, longest = distill.group_size, distill.max_tokens
    num_taken = plan.steps.total * plan.config.batch_size
    num_answers = num_taken * size
    prompts = taken_in_steps(plan, _prompt_lengths(plan)).most
    trained = size * prompts + num_answers * (longest - 1)
    told = _prompt_lengths(plan, distill.teacher_prompt)
    if is_sampled:
        made = MethodTokens(trained, prompts, num_answers * longest)
        judged = size * taken_in_steps(plan, told).most + num_answers * longest
        return _scored(made, judged, num_answers)
    lengths = [*told.train, *told.pool]
    num_rows = min(len(lengths), num_taken)  # each is answered once, and read once
    asked, num_answers = sum(heapq.nlargest(num_rows, lengths)), num_rows * size
    made = MethodTokens(trained, asked, num_answers * longest)
    if (distill.targets or "soft") == "hard":
        return made
    return _scored(made, size * asked + num_answers * longest, num_answers)


def _scored(made: MethodTokens, num_read: int, num_asked: int) -> MethodTokens:
    """With what it takes to ask other weights so often for log-probabilities."""
    sampled = made.sampled + NUM_SAMPLED_TO_SCORE * num_asked
    return MethodTokens(made.trained, made.prompt + num_read, sampled)


def _reference_tokens(plan: Plan) -> MethodTokens:
    """Tokens of the longest pairs, as many as are trained or measured, each once."""
    num_rounds = math.ceil(plan.steps.total / plan.steps.per_round)
    num_slots = plan.steps.per_round * plan.config.batch_size
    num_asked = plan.steps.total * plan.config.batch_size
    if plan.mining.needs_losses:
        hard = plan.mining.slots(num_slots, has_pool=bool(len(plan.pool.examples))).num_hard
        num_asked += (num_rounds - 1) * plan.mining.num_to_measure(hard)
    # The last token of each answer is read as well.
    lengths = [number + SIDES for table in _row_lengths(plan) for number in table]
    longest = heapq.nlargest(num_asked, lengths)
    return MethodTokens(0, sum(longest), SIDES * NUM_SAMPLED_TO_SCORE * len(longest))


def _row_lengths(plan: Plan) -> Lengths:
    """Tokens of each row that is trained on, of a pair both sides'."""
    return Lengths(plan.train.num_tokens, plan.pool.num_tokens)


def _prompt_lengths(plan: Plan, told: str | None = None) -> Lengths:
    """Tokens of each row up to its last answer, with a system message `told` before it."""

    def of(rows: ExampleTable) -> list[int]:
        asked = (one if told is None else with_system(one, told) for one in rows)
        return [plan.rendering.prompt_of(one).length for one in asked]

    return Lengths(of(plan.train.examples), of(plan.pool.examples))
