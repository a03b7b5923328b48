"""How many tokens a run takes at the most, before the first is paid for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from evaluation.held_out import HeldOutFile
from evaluation.tasks import Asked, EvalTask
from loop.planning.plan import Plan
from loop.planning.teacher import with_system
from rows.examples import Example
from simple_eval import Turn, build_prompt


class RunTokens(NamedTuple):
    """Tokens that a run takes at the most; what a judge reads and says is not among them."""

    trained: int
    prompt: int
    sampled: int
    num_evaluations: int  # the baseline among them, the sealed test apart


def tokens_of(plan: Plan) -> RunTokens:
    """The most tokens that the run reads and samples, one turn to a question, and about how many it
    trains on at the most.

    Trained are so many times the mean row as the run takes examples; the longest rows would come to
    more.
    """
    config = plan.config
    num_rounds = math.ceil(plan.steps.total / plan.steps.per_round)
    num_prompt = num_sampled = 0
    for task in plan.tasks:
        times = sum(task.is_due(round_no) for round_no in range(num_rounds + 1))
        if times <= num_rounds:  # also where a round is stopped on, and a guard before a rollback
            times = num_rounds + 1 if task.role == "guard" else times + 1
        every = config.evaluation.held_out_every_steps
        if every is not None and task.layer == 1:
            times += plan.steps.total // every
        per_time = eval_tokens(plan, task)
        num_prompt += times * per_time.num_prompt
        num_sampled += times * per_time.num_sampled
        if task.needs_rehearsal:
            num_prompt += per_time.num_prompt // task.n
            num_sampled += _max_tokens(plan, task)
    num_prompt += _num_mining_tokens(plan, num_rounds)
    for task in plan.test_tasks:
        num_prompt += eval_tokens(plan, task).num_prompt
        num_sampled += eval_tokens(plan, task).num_sampled
    if config.rl is not None or config.distill is not None:
        rolled = _rollout_tokens(plan)
        return rolled._replace(
            prompt=rolled.prompt + num_prompt,
            sampled=rolled.sampled + num_sampled,
            num_evaluations=num_rounds + 1,
        )
    tables = plan.train, plan.pool
    num_examples = sum(len(table.examples) for table in tables)
    mean_tokens = sum(sum(table.num_tokens) for table in tables) / num_examples
    num_trained = round(mean_tokens * plan.steps.total * config.batch_size)
    return RunTokens(num_trained, num_prompt, num_sampled, num_rounds + 1)


def _rollout_tokens(plan: Plan) -> RunTokens:
    """What steps on sampled answers take, where all answers are as long as they may be, and each
    group of reinforcement learning is sampled twice; prompts are so many times the mean one."""
    config, distill = plan.config, plan.config.distill
    sampling = config.rl or distill
    assert sampling is not None, "the caller has looked"
    tables = plan.train.examples, plan.pool.examples
    rows = [one for table in tables for one in table]
    num_requests = (1 if config.rl is None else 2) * plan.steps.total * config.batch_size
    num_sampled = num_requests * sampling.group_size * sampling.max_tokens
    num_read = _mean_prompt(plan, rows) * num_requests
    num_trained = round(num_read * sampling.group_size) + num_sampled
    num_scored = num_trained if config.rl is not None and config.rl.kl_coef else 0
    if distill is not None:
        told = distill.teacher_prompt
        asked = rows if told is None else [with_system(one, told) for one in rows]
        of_teacher = _mean_prompt(plan, asked) * num_requests
        if distill.way == "off_policy":
            num_read = of_teacher
        if distill.way == "on_policy" or distill.targets != "hard":
            num_scored = round(of_teacher * sampling.group_size) + num_sampled
    return RunTokens(num_trained, round(num_read) + num_scored, num_sampled, 0)


def _mean_prompt(plan: Plan, rows: Sequence[Example]) -> float:
    """Tokens of the mean prompt of rows."""
    return sum(plan.rendering.prompt_of(one).length for one in rows) / len(rows)


def describe_tokens(plan: Plan, tokens: RunTokens) -> str:
    """The line about the tokens of a run."""
    sealed = " and the sealed test" if plan.test_tasks else ""
    has_judge = plan.config.evaluation.grader_model is not None
    judged = "; what the grader reads and says comes on top" if has_judge else ""
    is_sampled = plan.config.method in ("rl", "distill")
    rolled = "" if not is_sampled else " and for the answers that are trained on"
    return (
        f"tokens: about {tokens.trained:,} trained, at most {tokens.prompt:,} prompt and "
        f"{tokens.sampled:,} sampled in {tokens.num_evaluations} evaluations{sealed}{rolled}"
        f"{judged}"
    )


def _num_mining_tokens(plan: Plan, num_rounds: int) -> int:
    """Tokens of the rows whose losses are measured before each later round, and once untrained,
    were they the longest ones."""
    if not plan.mining.needs_losses:
        return 0
    rendered = plan.pool if len(plan.pool.examples) else plan.train
    num_slots = plan.steps.per_round * plan.config.batch_size
    num_hard = plan.mining.slots(num_slots, has_pool=rendered is plan.pool).num_hard
    longest = sorted((number + 1 for number in rendered.num_tokens), reverse=True)
    at_once = plan.mining.num_to_measure(num_hard)
    num_tokens = (num_rounds - 1) * sum(longest[:at_once])
    if plan.mining.needs_losses_before:
        num_tokens += sum(longest[: (num_rounds - 1) * at_once])
    return num_tokens


class EvalTokens(NamedTuple):
    num_prompt: int
    num_sampled: int


def eval_tokens(plan: Plan, task: EvalTask) -> EvalTokens:
    """Tokens of measuring a task once, at the most."""
    if isinstance(task.work, HeldOutFile):
        infos = [plan.rendering[example.id].info for example in task.work.examples]
        return EvalTokens(sum(info.num_tokens + 1 for info in infos), 0)
    num_prompt = sum(_num_prompt_tokens(plan, one) for one in task.asked)
    repeats = plan.sampling.num_repeats
    return EvalTokens(repeats * num_prompt, repeats * task.n * _max_tokens(plan, task))


def _num_prompt_tokens(plan: Plan, asked: Asked) -> int:
    prompt = plan.sampling.system_prompt
    try:
        return build_prompt(plan.renderer, asked.turns, prompt).length
    except (ValueError, AssertionError):  # turns of an Inspect sample that its solver changes
        return build_prompt(plan.renderer, [Turn("user", asked.of_user)], prompt).length


def _max_tokens(plan: Plan, task: EvalTask) -> int:
    return task.max_tokens(plan.sampling.max_tokens) or 0
