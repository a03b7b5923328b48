"""The teacher of a distillation: what it is asked, its answers, and what it says of answers.

It may hear a system message that the student does not hear. Its tokens are the student's, so an
answer of either is scored after either's prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from errors import ConfigError
from ledger.records import Teacher
from ledger.rollouts import RolledSample
from loop.methods.method import Workplace
from loop.methods.rollouts import Prompt, prompt_of
from loop.methods.scoring import answer_logprobs, ask_all
from loop.planning.plan import Plan
from loop.planning.teacher import with_system
from rows.examples import find_example
from settings.method_groups import DistillSettings
from storage.journal import Journal

if TYPE_CHECKING:
    import numpy as np
    import tinker

NUM_LIKELIEST = 20  # tokens of a soft target, as many as the cookbook takes


def settings_of(plan: Plan) -> DistillSettings:
    assert plan.config.distill is not None, "the method has its settings"
    return plan.config.distill


def teacher_of(plan: Plan) -> Teacher:
    assert plan.inputs.teacher is not None, "it was found before the run began"
    return plan.inputs.teacher


async def open_teacher(workplace: Workplace) -> tinker.SamplingClient:
    """A watched client for the teacher."""
    teacher = teacher_of(workplace.plan)
    return await workplace.open_sampler(teacher.path, teacher.model_name)


def teacher_prompt_of(plan: Plan, example_id: str) -> Prompt:
    """What the teacher is asked for a row: the row's prompt, with `distill.teacher_prompt` as its
    system message, or before the one that it has."""
    told = settings_of(plan).teacher_prompt
    prompt = prompt_of(plan, example_id)
    if told is None:
        return prompt
    example = find_example(example_id, plan.train.examples, plan.pool.examples)
    assert example is not None, "steps are of rows of the plan"
    return prompt._replace(tokens=plan.rendering.prompt_of(with_system(example, told)))


# --- what it says of answers ----------------------------------------------------------------------


async def score_answers(
    plan: Plan,
    teacher: tinker.SamplingClient,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[int]],
    journal: Journal,
) -> list[list[float]]:
    """The teacher's log-probability of each token of answers, after those before it, in nats, kept
    as they come; `prompts` are the teacher's, one for each answer. Raises `ServiceError`."""

    async def score(prompt: Prompt, answer: Sequence[int]) -> list[float]:
        if not answer:
            return []
        return await answer_logprobs(teacher, prompt, answer, "the teacher", journal)

    return await ask_all(plan, score, prompts, answers)


class Likeliest(NamedTuple):
    """The teacher's likeliest tokens at each token of an answer, their probabilities summing to 1
    at each, and how many tokens it read for it."""

    tokens_TK: np.ndarray
    probs_TK: np.ndarray
    num_prompt_tokens: int


async def likeliest_tokens(
    plan: Plan,
    teacher: tinker.SamplingClient,
    prompts: Sequence[Prompt],
    answers: Sequence[RolledSample],
) -> list[Likeliest]:
    """The distribution of the teacher at each token of answers, cut at its likeliest ones;
    `prompts` are the teacher's, one for each answer. Raises `ServiceError`, and `ConfigError` for a
    service that does not give them."""
    import tinker

    async def ask(prompt: Prompt, answer: RolledSample) -> Likeliest:
        tokens = [*prompt.tokens.to_ints(), *answer.tokens]
        number = min(NUM_LIKELIEST, len(plan.renderer.tokenizer))
        response = await teacher.sample(
            tinker.ModelInput.from_ints(tokens),
            1,
            tinker.SamplingParams(max_tokens=1),
            include_prompt_logprobs=True,
            topk_prompt_logprobs=number,
        )
        given = response.topk_prompt_logprobs_np
        if given is None or len(given.token_ids) != len(tokens):
            raise ConfigError(
                "distill.targets is soft, and the service does not give the likeliest tokens of a "
                "prompt. Start a new run with distill.targets hard."
            )
        num_tokens = len(answer.tokens)
        return normalised(given.token_ids[-num_tokens:], given.logprobs[-num_tokens:], len(tokens))

    return await ask_all(plan, ask, prompts, answers)


def normalised(tokens_TK: np.ndarray, logprobs_TK: np.ndarray, num_prompt_tokens: int) -> Likeliest:
    """Likeliest tokens whose probabilities sum to 1 at each position."""
    import numpy as np

    probs = np.exp(logprobs_TK.astype(np.float64))
    return Likeliest(tokens_TK, probs / probs.sum(axis=1, keepdims=True), num_prompt_tokens)
