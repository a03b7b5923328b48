"""The tokens that training takes by each method, at the most, beside those of evaluations.

Of a method that samples its answers they are counted at their longest, so that it is never more.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

from config_schema import TrainingConfig
from loop.planning.methods import group_size, words_for
from loop.planning.plan import Plan
from loop.planning.teacher import with_system
from scores.measures import DPO, ON_POLICY, RL, SFT
from settings.method_groups import RlSettings

TRIES = 2  # groups, where the first is all wrong; both are trained on then


class MethodTokens(NamedTuple):
    """Tokens that training takes: trained, and read and sampled by sampling clients for it."""

    trained: int
    prompt: int = 0
    sampled: int = 0


def method_tokens(plan: Plan) -> MethodTokens:
    """What training takes. Trained rows are counted as so many times the mean row as the run takes
    examples; what is sampled, and what is read, as what it comes to at the most."""
    config, method = plan.config, words_for(plan.config)
    num_taken = plan.steps.total * config.batch_size
    trained = round(_mean_tokens(plan) * num_taken)
    if method is SFT:
        return MethodTokens(trained)
    if method is DPO:  # each pair is read first, for the loss, and then trained
        lengths = [number for table in (plan.train, plan.pool) for number in table.num_tokens]
        return MethodTokens(trained, _most_taken(plan, lengths) + _num_reference_tokens(plan))
    size, longest = group_size(config), _longest_answer(config)
    # A group is one request, which reads its prompt once.
    lengths = _prompt_lengths(plan)
    prompts, answers = _most_taken(plan, lengths), num_taken * size
    whole = size * prompts + answers * longest
    if method is RL:
        assert config.rl is not None, "its settings"
        if config.rl.max_turns is not None:
            return _conversations(config, config.rl, num_taken * TRIES)
        of_start = TRIES * whole if config.rl.kl_coef else 0
        return MethodTokens(TRIES * whole, TRIES * prompts + of_start, TRIES * answers * longest)
    assert config.distill is not None, "its settings"
    told = _prompt_lengths(plan, config.distill.teacher_prompt)
    judged = size * _most_taken(plan, told) + answers * longest
    if method is ON_POLICY:
        return MethodTokens(whole, prompts + judged, answers * longest)
    num_answered = min(len(told), num_taken)
    is_soft = (config.distill.targets or "soft") == "soft"
    read = sum(heapq.nlargest(num_answered, told)) + (judged if is_soft else 0)
    return MethodTokens(whole, read, num_answered * size * longest)


def _most_taken(plan: Plan, lengths: Sequence[int]) -> int:
    """Tokens of the rows of all steps, of rows so long, were they in each round the longest ones.

    A round has a row twice only where it begins anew with all of them. It may have one more often
    where few are left to draw from, since prompts that are solved rest, and where sources have
    shares; all of its rows are counted as the longest one then.
    """
    slots, num_taken = (
        number * plan.config.batch_size for number in (plan.steps.per_round, plan.steps.total)
    )
    if words_for(plan.config) is RL or plan.train_weights:
        return num_taken * max(lengths)
    times = 1 + math.ceil(slots / len(lengths))
    num_rounds, num_left = divmod(num_taken, slots)
    longest = heapq.nlargest(slots, (number for number in lengths for _ in range(times)))
    return num_rounds * sum(longest) + sum(longest[:num_left])


def _conversations(config: TrainingConfig, rl: RlSettings, num_prompts: int) -> MethodTokens:
    """What conversations with an environment come to, where each answer is sampled after as many
    tokens as there is room for, and no prompt goes on from the one before."""
    assert rl.max_turns is not None, "it has an environment"
    answers = num_prompts * rl.group_size * rl.max_turns
    whole = answers * config.max_seq_length
    of_start = whole if rl.kl_coef else 0
    return MethodTokens(whole, whole + of_start, answers * rl.max_tokens)


def _num_reference_tokens(plan: Plan) -> int:
    """Tokens of the longest pairs, as many as are trained or measured, each once."""
    num_rounds = math.ceil(plan.steps.total / plan.steps.per_round)
    num_slots = plan.steps.per_round * plan.config.batch_size
    num_asked = plan.steps.total * plan.config.batch_size
    if plan.mining.needs_losses:
        hard = plan.mining.slots(num_slots, has_pool=bool(len(plan.pool.examples))).num_hard
        num_asked += (num_rounds - 1) * plan.mining.num_to_measure(hard)
    tables = plan.train, plan.pool
    # The last token of each answer is read as well.
    lengths = sorted((n + 2 for table in tables for n in table.num_tokens), reverse=True)
    return sum(lengths[:num_asked])


def _mean_tokens(plan: Plan) -> float:
    lengths = [number for table in (plan.train, plan.pool) for number in table.num_tokens]
    return sum(lengths) / len(lengths)


def _prompt_lengths(plan: Plan, told: str | None = None) -> list[int]:
    """Tokens of each row up to its last answer, with a system message `told` before it."""
    tables = (plan.train.examples, plan.pool.examples)
    rows = (one if told is None else with_system(one, told) for table in tables for one in table)
    return [plan.rendering.prompt_of(one).length for one in rows]


def _longest_answer(config: TrainingConfig) -> int:
    group = config.rl or config.distill
    assert group is not None, "a method that samples has a group"
    return group.max_tokens
