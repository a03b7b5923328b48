"""How many tokens a run takes at the most, before the first is paid for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from evaluation.held_out import HeldOutFile
from evaluation.preferences import PairFile
from evaluation.tasks import Asked, EvalTask
from loop.planning.fitting import infos_of
from loop.planning.method_tokens import method_tokens
from loop.planning.methods import words_for
from loop.planning.plan import Plan
from rows.rendering import DatumInfo
from scores.measures import DPO, OFF_POLICY, ON_POLICY, RL
from services.watched_client import NUM_SAMPLED_TO_SCORE
from simple_eval import Turn, build_prompt


class RunTokens(NamedTuple):
    """Tokens that a run takes at the most; what a judge reads and says is not among them."""

    trained: int
    prompt: int
    sampled: int
    num_evaluations: int  # the baseline among them, the sealed test apart
    prompt_to_train: int = 0  # of `prompt` and `sampled`, what training itself takes: answers that
    sampled_to_train: int = 0  # are trained on, and what a reference or a teacher reads
    mean_trained: int | None = None  # were the mined rows mean ones, where rows are trained on


def tokens_of(plan: Plan) -> RunTokens:
    """The most tokens that the run trains on, reads and samples, with one turn to a question.

    Nothing that is drawn or sampled makes it more. What a solver of Inspect's adds does, and what
    is taken again after a kill, which is told when the run is resumed.
    """
    config = plan.config
    num_rounds = math.ceil(plan.steps.total / plan.steps.per_round)
    num_prompt = num_sampled = 0
    for task in plan.tasks:
        times = sum(task.is_due(round_no) for round_no in range(num_rounds + 1))
        if times <= num_rounds:  # also where a round is stopped on, and a guard before a rollback
            times = num_rounds + 1 if task.role == "guard" else times + 1
        per_time = eval_tokens(plan, task)
        num_prompt += times * per_time.num_prompt
        num_sampled += times * per_time.num_sampled
        every = config.evaluation.held_out_every_steps
        if every is not None and isinstance(task.work, HeldOutFile):  # a pass, which samples none
            num_prompt += plan.steps.total // every * per_time.num_prompt
    mined = _mining_tokens(plan, num_rounds)
    num_prompt += mined.num_prompt
    num_sampled += mined.num_sampled
    for task in plan.test_tasks:
        num_prompt += eval_tokens(plan, task).num_prompt
        num_sampled += eval_tokens(plan, task).num_sampled
    for task in (*plan.tasks, *plan.test_tasks):
        if task.needs_rehearsal:
            num_prompt += max(_num_prompt_tokens(plan, one) for one in task.asked)
            num_sampled += _max_tokens(plan, task)
    of_method = method_tokens(plan)
    return RunTokens(
        of_method.trained,
        num_prompt + of_method.prompt,
        num_sampled + of_method.sampled,
        num_rounds + 1,
        of_method.prompt,
        of_method.sampled,
        of_method.mean_trained,
    )


def describe_tokens(plan: Plan, tokens: RunTokens) -> str:
    """The line about the tokens of a run."""
    sealed = " and the sealed test" if plan.test_tasks else ""
    has_judge = plan.config.evaluation.grader_model is not None
    judged = "; what the grader reads and says comes on top" if has_judge else ""
    method = words_for(plan.config)
    trained = f"at most {tokens.trained:,} trained"
    if tokens.mean_trained not in (None, tokens.trained):
        trained += f" ({tokens.mean_trained:,} with mean rows)"
    read = f"{tokens.prompt:,} prompt"
    evaluations = f"{tokens.num_evaluations} evaluations{sealed}{judged}"
    if not (tokens.prompt_to_train or tokens.sampled_to_train):
        return f"tokens: {trained}, {read} and {tokens.sampled:,} sampled in {evaluations}"
    return (
        f"tokens: {trained}, {read} and {tokens.sampled:,} sampled, of "
        f"which {tokens.prompt_to_train:,} and {tokens.sampled_to_train:,} to train "
        f"({TO_TRAIN[method]}) and the others in {evaluations}"
    )


# What is read and sampled beside the evaluations.
TO_TRAIN = {
    DPO: "each pair is read before its loss, and once by the reference",
    RL: "sampled answers, twice as many where all to a prompt are wrong, and a KL to the start "
    "where it counts",
    ON_POLICY: "sampled answers, and the teacher's reading of them",
    OFF_POLICY: "the teacher's answers to each row, sampled once in a run, and its reading of "
    "them for soft targets",
}


class EvalTokens(NamedTuple):
    num_prompt: int
    num_sampled: int


def _mining_tokens(plan: Plan, num_rounds: int) -> EvalTokens:
    """Tokens of the rows whose losses are measured before each later round, and once untrained,
    were they the longest ones."""
    if not plan.mining.needs_losses:
        return EvalTokens(0, 0)
    rendered = plan.pool if len(plan.pool.examples) else plan.train
    num_slots = plan.steps.per_round * plan.config.batch_size
    num_hard = plan.mining.slots(num_slots, has_pool=rendered is plan.pool).num_hard
    num_ends = 2 if plan.mining.of_pairs else 1  # the last token of each is read as well
    longest = sorted((number + num_ends for number in rendered.num_tokens), reverse=True)
    at_once = plan.mining.num_to_measure(num_hard)
    asked = (num_rounds - 1) * longest[:at_once]
    if plan.mining.needs_losses_before:
        asked += longest[: (num_rounds - 1) * at_once]
    return EvalTokens(sum(asked), num_ends * NUM_SAMPLED_TO_SCORE * len(asked))


def eval_tokens(plan: Plan, task: EvalTask) -> EvalTokens:
    """Tokens of measuring a task once, at the most."""
    if isinstance(task.work, HeldOutFile):
        infos = [plan.rendering[example.id].info for example in task.work.examples]
        return _to_score(infos)
    if isinstance(task.work, PairFile):
        return _to_score([i for one in task.work.examples for i in infos_of(plan.rendering, one)])
    num_prompt = sum(_num_prompt_tokens(plan, one) for one in task.asked)
    repeats = plan.sampling.num_repeats
    return EvalTokens(repeats * num_prompt, repeats * task.n * _max_tokens(plan, task))


def _to_score(infos: Sequence[DatumInfo]) -> EvalTokens:
    num_read = sum(info.num_tokens + 1 for info in infos)  # the last token is read as well
    return EvalTokens(num_read, NUM_SAMPLED_TO_SCORE * len(infos))


def _num_prompt_tokens(plan: Plan, asked: Asked) -> int:
    prompt = plan.sampling.system_prompt
    try:
        return build_prompt(plan.renderer, asked.turns, prompt).length
    except (ValueError, AssertionError):  # turns of an Inspect sample that its solver changes
        return build_prompt(plan.renderer, [Turn("user", asked.of_user)], prompt).length


def _max_tokens(plan: Plan, task: EvalTask) -> int:
    return task.max_tokens(plan.sampling.max_tokens) or 0
