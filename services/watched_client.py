"""A sampling client that times each answer, tells what each request takes, and keeps the keys out
of what fails."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from errors import ServiceError
from services.counted_client import Note, Tokens, not_noted

if TYPE_CHECKING:
    import tinker


T = TypeVar("T")
Turns = contextlib.AbstractAsyncContextManager[Any]  # entered and left any number of times

# Tokens that a request samples which asks for log-probabilities alone: the SDK asks for one, no
# service takes fewer, and it is paid for as any other.
NUM_SAMPLED_TO_SCORE = 1


def watched(
    client: tinker.SamplingClient,
    on_answer: Callable[[float], None],
    redacted: Callable[[str], str],
    note: Note = not_noted,
    turns: Turns | None = None,
) -> tinker.SamplingClient:
    """A client, as evaluators use one, that tells of each answer how many seconds it took, and of
    each request what it takes before it is sent.

    With `turns` each request waits for its turn first, and holds it until it is answered; what it
    waits for it is not among those seconds.
    What a request fails with is a `ServiceError` without the keys, for it goes into records and
    logs, and a server may have quoted them.
    """
    turns = contextlib.nullcontext() if turns is None else turns
    return cast("tinker.SamplingClient", _WatchedClient(client, on_answer, redacted, note, turns))


def for_each_token(found: Sequence[float | None], num_tokens: int) -> list[float | None]:
    """One log-probability for each token of a prompt, None for the first, which has none.

    An engine may leave the first one out (SkyRL's JAX backend does), so that one is missing; of any
    other number nobody can say whose they are. Raises `ServiceError` for it.
    """
    if len(found) == num_tokens:
        return list(found)
    if len(found) == num_tokens - 1:
        return [None, *found]
    raise ServiceError(
        f"the service gave {len(found)} log-probabilities for a prompt of {num_tokens} tokens, so "
        "whose they are cannot be told"
    )


class _WatchedClient:
    def __init__(
        self,
        client: tinker.SamplingClient,
        on_answer: Callable[[float], None],
        redacted: Callable[[str], str],
        note: Note,
        turns: Turns,
    ) -> None:
        self._client = client
        self._on_answer = on_answer
        self._redacted = redacted
        self._note = note
        self._turns = turns

    async def sample(
        self,
        prompt: tinker.ModelInput,
        num_samples: int,
        sampling_params: tinker.SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
    ) -> tinker.SampleResponse:
        longest = num_samples * (sampling_params.max_tokens or 0)

        def ask() -> Awaitable[tinker.SampleResponse]:
            self._note(Tokens(prompt_tokens=prompt.length, sampled_tokens=longest))
            return self._client.sample(
                prompt,
                num_samples,
                sampling_params,
                include_prompt_logprobs=include_prompt_logprobs,
                topk_prompt_logprobs=topk_prompt_logprobs,
            )

        response = await self._answer(ask)
        num_sampled = sum(len(one.tokens) for one in response.sequences)
        self._note(Tokens(sampled_tokens=num_sampled - longest))
        return response

    async def compute_logprobs(self, prompt: tinker.ModelInput) -> list[float | None]:
        def ask() -> Awaitable[list[float | None]]:
            self._note(Tokens(prompt_tokens=prompt.length, sampled_tokens=NUM_SAMPLED_TO_SCORE))
            return self._client.compute_logprobs(prompt)

        found = await self._answer(ask)
        return for_each_token(found, prompt.length)

    async def _answer(self, ask: Callable[[], Awaitable[T]]) -> T:
        from services.faults import SDK_ERRORS, explain

        async with self._turns:
            asked_at = time.monotonic()
            try:
                answer = await ask()
            except SDK_ERRORS as error:
                if explain(error, None) is None:
                    raise
                said = self._redacted(f"{type(error).__name__}: {error}")
                raise ServiceError(said) from None
            self._on_answer(time.monotonic() - asked_at)
            return answer


@dataclass
class Stopwatch:
    """How long the requests of an evaluation took, from asking to the answer."""

    num_requests: int = 0
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.num_requests += 1
        self.total_s += seconds

    def take_mean_ms(self) -> float | None:
        """The mean in milliseconds since it was last taken; None where nothing was asked."""
        mean_ms = 1000 * self.total_s / self.num_requests if self.num_requests else None
        self.num_requests, self.total_s = 0, 0.0
        return mean_ms
