"""The probes' hands: adapters made and trained, rows asked about, saves kept in mind and deleted.

Nothing here judges. Each request is one of the public SDK; what is sent is counted, and what is
saved is deleted at the end whatever happens, and expires on the service if this process is killed.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import tinker

from services.check.courses import TINY, Course, Flags, Push, decayed_share
from services.faults import SDK_ERRORS, explain, said_by

TTL_S = 3600  # of what is saved
MAX_AT_ONCE = 6  # adapters at work; a course waits for its own requests alone
LIMIT_S = 120  # for the answer to a probe
LOSS = "cross_entropy"
# What comes of answers that lack something: the SDK asserts what it has to find in them.
PROBE_ERRORS = (*SDK_ERRORS, AssertionError, LookupError, TimeoutError)
T = TypeVar("T")


class Row(NamedTuple):
    """Tokens, of which each predicts the next one."""

    tokens: tuple[int, ...]

    @property
    def num_targets(self) -> int:
        return len(self.tokens) - 1

    def datum(self, weights: Sequence[float]) -> tinker.Datum:
        return tinker.Datum(
            model_input=tinker.ModelInput.from_ints(list(self.tokens[:-1])),
            loss_fn_inputs={  # pyright: ignore[reportArgumentType]  # the SDK takes lists
                "target_tokens": list(self.tokens[1:]),
                "weights": list(weights),
            },
        )

    def weights(self, push: Push) -> list[float]:
        """The weights of the targets in one push."""
        rest = {"whole": 1.0, "first": 0.0, "first and tiny": TINY}[push.shape]
        return [push.factor, *[push.factor * rest] * (self.num_targets - 1)]


class Measured(NamedTuple):
    """What a course came to: the log-probabilities of the row's targets before and after it, in
    nats, and of each forward_backward the `loss:sum` that was said (None: none) and the one that
    follows from the log-probabilities."""

    before: tuple[float, ...]
    after: tuple[float, ...]
    losses: tuple[tuple[float | None, float], ...] = ()
    is_on_first: bool = False

    @property
    def move(self) -> float:
        """How far the loss has fallen, per target, in nats."""
        if self.is_on_first:
            return self.after[0] - self.before[0]
        return (math.fsum(self.after) - math.fsum(self.before)) / len(self.after)


class Refused(NamedTuple):
    """What a service said instead of doing what it was asked for."""

    said: str


@dataclass
class Spent:
    """Tokens that were sent, and sampled."""

    train_tokens: int = 0
    prompt_tokens: int = 0
    sampled_tokens: int = 0


@dataclass
class Bench:
    """A session on the service, the model and the row that is trained on."""

    service: tinker.ServiceClient
    rest: tinker.RestClient
    base_model: str
    row: Row
    name: str  # that all saves begin with
    spent: Spent = field(default_factory=Spent)
    saved: list[str] = field(default_factory=list)  # tinker:// paths
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_AT_ONCE))

    async def adapter(
        self, rank: int, flags: Flags, seed: int = 1, base_model: str | None = None
    ) -> tinker.TrainingClient:
        """A fresh adapter, on the model of the settings or another."""
        return await self.service.create_lora_training_client(
            base_model=base_model or self.base_model,
            rank=rank,
            seed=seed,
            train_mlp=flags.train_mlp,
            train_attn=flags.train_attn,
            train_unembed=flags.train_unembed,
        )

    async def logprobs(
        self, client: tinker.TrainingClient, row: Row | None = None
    ) -> tuple[float, ...]:
        """Of each target of a row, under an adapter's weights."""
        row = row or self.row
        self.spent.prompt_tokens += row.num_targets
        output = await client.forward([row.datum([1.0] * row.num_targets)], LOSS)
        return tuple(map(float, output.loss_fn_outputs[0]["logprobs"].to_numpy()))

    async def push(
        self, client: tinker.TrainingClient, push: Push, lr: float
    ) -> tuple[float | None, float]:
        """Take one step; the loss that was said, and the one that the log-probabilities give."""
        weights = self.row.weights(push)
        self.spent.train_tokens += self.row.num_targets * push.num_rows
        stepping_lr = lr if push.moves else 0.0
        forward_backward = client.forward_backward([self.row.datum(weights)] * push.num_rows, LOSS)
        step = client.optim_step(
            tinker.AdamParams(
                learning_rate=stepping_lr,
                beta1=push.betas[0],
                beta2=push.betas[1],
                eps=push.eps,
                weight_decay=decayed_share(lr) / lr if push.decays else 0.0,
                grad_clip_norm=push.grad_clip_norm,
            )
        )
        output = await forward_backward
        await step
        computed = math.fsum(
            -weight * float(logprob)
            for one in output.loss_fn_outputs
            for weight, logprob in zip(weights, one["logprobs"].to_numpy(), strict=False)
        )
        return output.metrics.get("loss:sum"), computed

    async def run(self, course: Course, lr: float) -> Measured | Refused:
        """Make a fresh adapter, and train it by a course."""
        async with self._room:
            return await within(self._course(course, lr))

    async def _course(self, course: Course, lr: float) -> Measured | Refused:
        client = await self.adapter(course.rank, course.flags, course.seed)
        before = await self.logprobs(client)
        losses = [await self.push(client, push, lr) for push in course.pushes]
        after = await self.logprobs(client)
        if not len(before) == len(after) == self.row.num_targets:
            num = min(len(before), len(after))
            return Refused(f"it gave {num} log-probabilities for {self.row.num_targets} targets")
        return Measured(before, after, tuple(losses), course.is_on_first)

    # --- what is saved ----------------------------------------------------------------------

    async def save_state(self, client: tinker.TrainingClient, what: str) -> str:
        name = self._keep_in_mind(client, "weights", what)
        return (await client.save_state(name, ttl_seconds=TTL_S)).path

    async def save_sampler(self, client: tinker.TrainingClient, what: str) -> str:
        name = self._keep_in_mind(client, "sampler_weights", what)
        return (await client.save_weights_for_sampler(name, ttl_seconds=TTL_S)).path

    async def save_external(self, client: tinker.TrainingClient, what: str) -> str:
        name = self._keep_in_mind(client, "external_weights", what)
        return (await client.save_weights_external(name, ttl_seconds=TTL_S)).path

    def _keep_in_mind(self, client: tinker.TrainingClient, kind: str, what: str) -> str:
        """Note the path before anything is sent: a save that is broken off is deleted as well."""
        name = f"{self.name}-{what}"
        self.saved.append(f"tinker://{client.model_id}/{kind}/{name}")
        return name

    async def delete_all(self) -> list[str]:
        """Delete what was saved; the paths that the service would not delete."""
        left = []
        while self.saved:
            path = self.saved[-1]
            try:
                await self.rest.delete_checkpoint_from_tinker_path(path)
            except SDK_ERRORS as error:
                left.append(f"{path}: {said_by(error)}")
            self.saved.pop()
        return left


async def within(work: Coroutine[Any, Any, T]) -> T | Refused:
    """What a probe gives, or why it gave nothing, within a limit of time.

    Raises what the SDK does where the service cannot be spoken to any more.
    """
    try:
        async with asyncio.timeout(LIMIT_S):
            return await work
    except PROBE_ERRORS as error:
        return refused(error)


def refused(error: Exception) -> Refused:
    """What a service said, or what is wrong with its answer; raises the error again where the
    session is over."""
    if isinstance(error, TimeoutError):
        return Refused(f"no answer within {LIMIT_S} s")
    explained = explain(error, None)
    if explained is None:
        return Refused(f"the SDK cannot use its answer ({type(error).__name__}: {error})")
    # A 404 may be of an address that a service does not have, which is no session that is lost.
    if explained.fault in ("user_error", "server_error", "too_long"):
        return Refused(said_by(error))
    if explained.fault == "session_lost" and isinstance(error, tinker.NotFoundError):
        return Refused(said_by(error))
    raise error
