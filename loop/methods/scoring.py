"""What other weights than those that are trained say of sampled answers, token by token: those of a
teacher, and those that a run started from. Each is kept in a journal as it comes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

from errors import ServiceError
from ledger.rollouts import RolledGroup
from loop.methods.rollouts import Prompt
from loop.planning.plan import Plan
from storage.journal import Journal
from storage.stored_json import Measure

if TYPE_CHECKING:
    import tinker

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class _Logprobs:
    """What a journal holds of an answer that was scored."""

    logprobs: list[Measure]


async def answer_logprobs(
    client: tinker.SamplingClient,
    prompt: Prompt,
    answer: Sequence[int],
    whose: str,
    journal: Journal,
) -> list[float]:
    """The log-probability of each token of an answer under the weights of `client`, in nats; one
    that the journal holds is not asked for. Raises `ServiceError`, which says `whose` they are."""
    import tinker

    tokens = [*prompt.tokens.to_ints(), *answer]
    key = f"scored/{hashlib.sha256(json.dumps(tokens).encode()).hexdigest()}"
    if (kept := journal.get(key, _Logprobs)) is not None:
        return kept.logprobs
    given = await client.compute_logprobs(tinker.ModelInput.from_ints(tokens))
    logprobs = [one for one in given[-len(answer) :] if one is not None and math.isfinite(one)]
    if len(given) != len(tokens) or len(logprobs) != len(answer):
        raise ServiceError(
            f"The service gave {len(logprobs)} log-probabilities of {whose} for an answer of "
            f"{len(answer)} tokens, and each of them is judged by one. Use a service that gives "
            "them."
        )
    journal.add(key, asdict(_Logprobs(logprobs)), num_prompt_tokens=len(tokens))
    return logprobs


async def ask_all(
    plan: Plan,
    ask: Callable[[T, U], Awaitable[object]],
    prompts: Sequence[T],
    answers: Sequence[U],
) -> list:
    """Ask of all, so many at once as an evaluation has."""
    slots = asyncio.Semaphore(plan.config.evaluation.concurrency)

    async def one(prompt: T, answer: U) -> object:
        async with slots:
            return await ask(prompt, answer)

    pairs = zip(prompts, answers, strict=True)
    asked = [asyncio.ensure_future(one(*pair)) for pair in pairs]
    try:
        return list(await asyncio.gather(*asked))
    finally:
        for request in asked:  # where one has failed, or the run is left
            request.cancel()


class KeptScores:
    """What the cookbook asks a client for, of answers whose log-probabilities under the weights of
    the start are kept; those of a prompt's tokens, which nothing is made of, are 0."""

    def __init__(self, pairs: Sequence[tuple[Prompt, RolledGroup]]) -> None:
        self._found = {
            (*prompt.tokens.to_ints(), *one.tokens): one.start_logprobs
            for prompt, group in pairs
            for one in group.samples
        }

    async def compute_logprobs_async(self, prompt: tinker.ModelInput) -> list[float | None]:
        """Of each token its log-probability in nats, of the first None."""
        tokens = prompt.to_ints()
        kept = self._found[tuple(tokens)]
        assert kept is not None, "they are sampled with it"
        return [None, *[0.0] * (len(tokens) - len(kept) - 1), *kept]
