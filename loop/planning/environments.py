"""What an environment is given of a row, how long its conversations may be, and how the first one
begins."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from evaluation.environments import EnvironmentRow, check_environment
from loop.planning.fitting import limits_of
from loop.planning.plan import Plan
from loop.planning.rewards import describe_reward, question_of, reference_of
from rows.examples import Example
from rows.rendering import Rendering


def environment_row(example: Example, rendering: Rendering, seed: int) -> EnvironmentRow:
    """What an environment is given of a row."""
    messages = copy.deepcopy(rendering.asked_of(example))
    question, reference = question_of(example), reference_of(example)
    return EnvironmentRow(question, reference, example.topic, messages, seed)


def room_of(plan: Plan) -> int:
    """The most tokens of a conversation with an environment, whose loss can be measured."""
    longest = limits_of(plan.inputs.model_dir).longest_row(is_measured=True)
    return plan.max_seq_length if longest is None else min(plan.max_seq_length, longest)


def describe_rewards(plan: Plan) -> Iterator[str]:
    """Yield what a row's own answer is worth, or how an environment begins with a row. Raises
    `ConfigError` where that cannot be told."""
    rows, inputs = plan.train.examples, plan.inputs
    if inputs.reward is not None:
        yield from describe_reward(inputs.reward, rows)
    if inputs.environment is not None:
        where = f"{rows[0].source} line {rows[0].line_no}"
        row = environment_row(rows[0], plan.rendering, plan.config.seed)
        environment, room = inputs.environment, room_of(plan)
        num_tokens = check_environment(environment, row, plan.renderer, room, where)
        yield (
            f"environment: {environment.name}; it begins with {num_tokens} tokens for {where}, "
            f"and a conversation has room for {room}"
        )
