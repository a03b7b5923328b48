"""The teacher of a distillation: what it is asked, its answers, and what it says of answers.

It may hear a system message that the student does not hear. Its tokens are the student's, so an
answer of either is scored after either's prompt.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

from errors import ConfigError, ServiceError
from ledger.records import Teacher
from ledger.rollouts import RolledSample
from ledger.taught_answers import TopTokens
from loop.methods.method import Workplace
from loop.methods.rollouts import Prompt, prompt_of
from loop.methods.scoring import answer_logprobs, ask_all
from loop.planning.plan import Plan
from loop.planning.teacher import with_system
from rows.examples import find_example
from services.watched_client import NUM_SAMPLED_TO_SCORE
from settings.method_groups import DistillSettings
from storage.journal import Journal
from storage.stored_json import Count

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
    at each."""

    tokens_TK: np.ndarray
    probs_TK: np.ndarray


@dataclass(frozen=True)
class _Read:
    """What a journal holds of an answer: (T, K) as bytes, int32 and float32, in base64."""

    tokens: str
    logprobs: str
    num_tokens: Count


async def read_targets(
    plan: Plan,
    teacher: tinker.SamplingClient,
    answers: Mapping[str, Sequence[RolledSample]],
    journal: Journal,
) -> dict[str, TopTokens]:
    """What the teacher finds likely at each token of its answers to rows, kept as it comes; those
    of a row's answers stand one after the other.

    Raises `ServiceError`, and `ConfigError` for a service that does not give them.
    """
    import numpy as np

    number = min(NUM_LIKELIEST, len(plan.renderer.tokenizer))

    async def ask(prompt: Prompt, sample: tuple[int, RolledSample]) -> TopTokens:
        place, answer = sample
        key = f"targets/{prompt.example_id}/{place}"
        if (kept := journal.get(key, _Read)) is not None:
            try:
                return _decoded(kept, len(answer.tokens), number)
            except ValueError as error:
                raise journal.unreadable(key, error) from None
        tokens = [*prompt.tokens.to_ints(), *answer.tokens]
        made = await _top_tokens(teacher, tokens, len(answer.tokens), number)
        cost = {"num_prompt_tokens": len(tokens), "num_sampled_tokens": NUM_SAMPLED_TO_SCORE}
        journal.add(key, asdict(_encoded(made)), **cost)
        return made

    flat = [(one, sample) for one, some in answers.items() for sample in enumerate(some)]
    prompts = {one: teacher_prompt_of(plan, one) for one in answers}
    made = iter(await ask_all(plan, ask, [prompts[one] for one, _ in flat], [s for _, s in flat]))
    rows = {one: [next(made) for _ in some] for one, some in answers.items()}
    return {
        one: TopTokens(*(np.concatenate(parts) for parts in zip(*some, strict=True)))
        for one, some in rows.items()
        if some
    }


async def _top_tokens(
    teacher: tinker.SamplingClient, tokens: Sequence[int], num_last: int, number: int
) -> TopTokens:
    """The likeliest tokens at each of the last ones of some tokens."""
    import numpy as np
    import tinker

    response = await teacher.sample(
        tinker.ModelInput.from_ints(list(tokens)),
        1,
        tinker.SamplingParams(max_tokens=NUM_SAMPLED_TO_SCORE),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=number,
    )
    given = response.topk_prompt_logprobs_np
    if given is None or len(given.token_ids) != len(tokens):
        raise ConfigError(
            "distill.targets is soft, and the service does not give the likeliest tokens of a "
            "prompt. Start a new run with distill.targets hard."
        )
    made = TopTokens(
        given.token_ids[-num_last:].astype(np.int32), given.logprobs[-num_last:].astype(np.float32)
    )
    if np.isnan(made.logprobs_TK).any():
        raise ServiceError(
            "The service gave log-probabilities of the teacher's that are no numbers, so there is "
            "nothing to learn from. Check the teacher's weights."
        )
    return made


def _encoded(made: TopTokens) -> _Read:
    tokens, logprobs = (
        base64.b64encode(part.astype(part.dtype.newbyteorder("<")).tobytes()).decode()
        for part in made
    )
    return _Read(tokens, logprobs, len(made.tokens_TK))


def _decoded(kept: _Read, num_tokens: int, number: int) -> TopTokens:
    """What was kept of an answer. Raises `ValueError` where it is not of so many tokens, each with
    so many likeliest ones."""
    import numpy as np

    if kept.num_tokens != num_tokens:
        raise ValueError(f"it is of {kept.num_tokens} tokens, and the answer has {num_tokens}")
    tokens = np.frombuffer(base64.b64decode(kept.tokens, validate=True), "<i4")
    logprobs = np.frombuffer(base64.b64decode(kept.logprobs, validate=True), "<f4")
    shape = (num_tokens, number)
    return TopTokens(tokens.reshape(shape), logprobs.reshape(shape))


def normalised(top: TopTokens) -> Likeliest:
    """Likeliest tokens whose probabilities sum to 1 at each position."""
    import numpy as np

    probs = np.exp(top.logprobs_TK.astype(np.float64))
    return Likeliest(top.tokens_TK, probs / probs.sum(axis=1, keepdims=True))
