"""The tokens that training takes by each method, at the most, beside those of evaluations.

Of a method that samples its answers they are counted at their longest, so that it is never more.
"""

from __future__ import annotations

import math
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
    """What training takes: of rows that are trained as they are, about so many times the mean row
    as the run takes examples; of sampled answers, what they come to at the most."""
    config, method = plan.config, words_for(plan.config)
    num_taken = plan.steps.total * config.batch_size
    mean_tokens = _mean_tokens(plan)
    if method is SFT:
        return MethodTokens(round(mean_tokens * num_taken))
    if method is DPO:
        trained = round(mean_tokens * num_taken)  # read first, for the loss, and then trained
        return MethodTokens(trained, trained + _num_reference_tokens(plan))
    longest = _longest_answer(config)
    # A group is one request, which reads its prompt once.
    prompt, answers = _mean_prompt(plan), num_taken * group_size(config)
    whole = round(answers * (prompt + longest))
    if method is RL:
        assert config.rl is not None, "its settings"
        if config.rl.max_turns is not None:
            return _conversations(config, config.rl, num_taken * TRIES)
        of_start = TRIES * whole if config.rl.kl_coef else 0
        read = round(TRIES * num_taken * prompt) + of_start
        return MethodTokens(TRIES * whole, read, TRIES * answers * longest)
    assert config.distill is not None, "its settings"
    told = _mean_prompt(plan, config.distill.teacher_prompt)
    judged = round(answers * (told + longest))
    if method is ON_POLICY:
        return MethodTokens(whole, round(num_taken * prompt) + judged, answers * longest)
    num_answered = min(_num_rows(plan), num_taken)
    is_soft = (config.distill.targets or "soft") == "soft"
    read = round(num_answered * told) + (judged if is_soft else 0)
    return MethodTokens(whole, read, num_answered * group_size(config) * longest)


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


def _num_rows(plan: Plan) -> int:
    return sum(len(table.examples) for table in (plan.train, plan.pool))


def _mean_tokens(plan: Plan) -> float:
    return sum(sum(table.num_tokens) for table in (plan.train, plan.pool)) / _num_rows(plan)


def _mean_prompt(plan: Plan, told: str | None = None) -> float:
    """Tokens of the mean row up to its last answer, with a system message `told` before it."""
    tables = (plan.train.examples, plan.pool.examples)
    rows = (one if told is None else with_system(one, told) for table in tables for one in table)
    return sum(plan.rendering.prompt_of(one).length for one in rows) / _num_rows(plan)


def _longest_answer(config: TrainingConfig) -> int:
    group = config.rl or config.distill
    assert group is not None, "a method that samples has a group"
    return group.max_tokens
