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
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from errors import ServiceError
from ledger.rollouts import RolledGroup, RolledSample
from loop.methods.rollouts import Prompt, all_of, datums_of
from loop.planning.plan import Plan
from rows.rendering import tokens_of
from services.watched_client import NUM_SAMPLED_TO_SCORE
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


async def token_logprobs(
    client: tinker.SamplingClient,
    tokens: Sequence[int],
    is_wanted: Sequence[bool],
    whose: str,
    journal: Journal,
) -> list[float]:
    """The log-probabilities of the wanted ones of some tokens, each after those before it, under
    the weights of `client`, in nats; what the journal holds is not asked for.

    Raises `ServiceError`, which says `whose` they are.
    """
    import tinker

    of_all = json.dumps([list(tokens), [int(one) for one in is_wanted]])
    key = f"scored/{hashlib.sha256(of_all.encode()).hexdigest()}"
    if (kept := journal.get(key, _Logprobs)) is not None:
        return kept.logprobs
    given = await client.compute_logprobs(tinker.ModelInput.from_ints(list(tokens)))
    wanted = [one for one, is_one in zip(given, is_wanted, strict=False) if is_one]
    logprobs = [one for one in wanted if one is not None and math.isfinite(one)]
    if len(given) != len(tokens) or len(logprobs) != sum(is_wanted):
        raise ServiceError(
            f"The service gave {len(logprobs)} log-probabilities of {whose} for an answer of "
            f"{sum(is_wanted)} tokens, and each of them is judged by one. Use a service that gives "
            "them."
        )
    cost = {"num_prompt_tokens": len(tokens), "num_sampled_tokens": NUM_SAMPLED_TO_SCORE}
    journal.add(key, asdict(_Logprobs(logprobs)), **cost)
    return logprobs


async def answer_logprobs(
    client: tinker.SamplingClient,
    prompt: Prompt,
    answer: Sequence[int],
    whose: str,
    journal: Journal,
) -> list[float]:
    """The log-probability of each token of an answer to a prompt, as `token_logprobs` gives it."""
    asked = prompt.tokens.to_ints()
    is_wanted = [False] * len(asked) + [True] * len(answer)
    return await token_logprobs(client, [*asked, *answer], is_wanted, whose, journal)


class _Text(NamedTuple):
    """Tokens that are trained on together, and which of them were sampled."""

    tokens: list[int]
    is_sampled: list[bool]


def _texts_of(prompt: Prompt, sample: RolledSample) -> list[_Text]:
    """What an answer is trained as: one text, or several of a conversation whose turns do not each
    go on from the one before."""
    import torch

    group = RolledGroup(prompt.example_id, prompt.question, prompt.reference, [sample])
    return [
        _Text(
            tokens_of(one),
            [False, *(one.loss_fn_inputs["mask"].to_numpy() > 0).tolist()],
        )
        for one in datums_of([prompt], [group], [torch.zeros(1)])
    ]


async def sample_logprobs(
    client: tinker.SamplingClient,
    prompt: Prompt,
    sample: RolledSample,
    whose: str,
    journal: Journal,
) -> list[float]:
    """The log-probability of each sampled token of an answer or a conversation, in their order."""
    found: list[float] = []
    for text in _texts_of(prompt, sample):
        found += await token_logprobs(client, text.tokens, text.is_sampled, whose, journal)
    return found


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
    return await all_of([one(*pair) for pair in pairs])


class KeptScores:
    """What the cookbook asks a client for, of answers whose log-probabilities under the weights of
    the start are kept; those of the other tokens, which nothing is made of, are 0."""

    def __init__(self, pairs: Sequence[tuple[Prompt, RolledGroup]]) -> None:
        self._found: dict[tuple[int, ...], list[float | None]] = {}
        for prompt, group in pairs:
            for sample in group.samples:
                left = iter(sample.start_logprobs or ())
                for tokens, is_sampled in _texts_of(prompt, sample):
                    logprobs = [next(left) if one else 0.0 for one in is_sampled]
                    self._found[tuple(tokens)] = [None, *logprobs[1:]]

    async def compute_logprobs_async(self, prompt: tinker.ModelInput) -> list[float | None]:
        """Of each token its log-probability in nats, of the first None."""
        return self._found[tuple(prompt.to_ints())]
