"""The probes' hands: adapters made and trained, rows asked about, saves kept in mind and deleted.

Nothing here judges. Each request is one of the public SDK; what is sent is counted, and what is
saved is deleted at the end whatever happens, and expires on the service if this process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import tinker

from services.check.courses import TINY, Course, Flags, Push, decayed_share
from services.check.verdicts import Verdict
from services.faults import SDK_ERRORS, explain, is_refusal, said_by
from services.sdk import NotInThisSdk

TTL_S = 3600  # of what is saved
LIMIT_S = 120  # for the answers to a probe
ANSWER_S = 30  # for an answer that needs no work
DELETE_S = 10  # for the deletion of one save
SAVE_WAITS_S = (0.5, 1.0, 2.0)  # for a save that was under way when the check was broken off
LOSS = "cross_entropy"
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


class Said(NamedTuple):
    """Of one forward_backward: the `loss:sum` that was said (None: none), the one that follows from
    the log-probabilities, in nats, and the sum of the weights' sizes."""

    loss: float | None
    computed: float
    size: float


class Measured(NamedTuple):
    """What a course came to: the log-probabilities of the row's targets before and after it, in
    nats, and what each forward_backward said."""

    before: tuple[float, ...]
    after: tuple[float, ...]
    losses: tuple[Said, ...] = ()
    is_on_first: bool = False

    @property
    def move(self) -> float:
        """How far the loss has fallen, per target, in nats."""
        if self.is_on_first:
            return self.after[0] - self.before[0]
        return (math.fsum(self.after) - math.fsum(self.before)) / len(self.after)


class Unusable(Exception):
    """An answer that is not of the form that was asked for."""


class Refused(NamedTuple):
    """Why a probe gave nothing, in words that stand alone: what the service said instead of doing
    what it was asked for, or what is wrong with its answer. `is_late`: it has not answered in time,
    which says nothing of what it does."""

    said: str
    is_late: bool = False

    @property
    def verdict(self) -> Verdict:
        """Of a line on something that is to be done, and that a run would wait for."""
        return "cannot tell" if self.is_late else "differs"


# What comes of answers that lack something: the SDK asserts what it has to find in them.
PROBE_ERRORS = (*SDK_ERRORS, AssertionError, LookupError, Unusable)


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
    # tinker:// paths: a save that is under way is sent; one that failed, or is being deleted, may
    # not be there
    saved: dict[str, Literal["sent", "made", "doubtful"]] = field(default_factory=dict)

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
        """Of each target of a row, under an adapter's weights. Raises `Unusable` where they are
        not one finite number for each."""
        row = row or self.row
        logprobs = await self.forward(client, row)
        if len(logprobs) != row.num_targets:
            raise Unusable(
                f"it gave {len(logprobs)} log-probabilities for {row.num_targets} targets"
            )
        if not all(map(math.isfinite, logprobs)):
            raise Unusable("it gave log-probabilities that are no finite numbers")
        return logprobs

    async def forward(self, client: tinker.TrainingClient, row: Row) -> tuple[float, ...]:
        """What a service gives as the log-probabilities of a row's targets, whatever it is."""
        self.spent.prompt_tokens += row.num_targets
        output = await client.forward([row.datum([1.0] * row.num_targets)], LOSS)
        return tuple(map(float, output.loss_fn_outputs[0]["logprobs"].to_numpy()))

    async def push(self, client: tinker.TrainingClient, push: Push, lr: float) -> Said:
        """Take one step; what was said of its loss."""
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
        size = push.num_rows * math.fsum(map(abs, weights))
        return Said(output.metrics.get("loss:sum"), computed, size)

    async def run(self, course: Course, lr: float) -> Measured | Refused:
        """Make a fresh adapter, and train it by a course."""
        return await within(self._course(course, lr))

    async def _course(self, course: Course, lr: float) -> Measured | Refused:
        client = await self.adapter(course.rank, course.flags, course.seed)
        before = await self.logprobs(client)
        losses = [await self.push(client, push, lr) for push in course.pushes]
        after = await self.logprobs(client)
        return Measured(before, after, tuple(losses), course.is_on_first)

    # --- what is saved ----------------------------------------------------------------------

    async def save_state(self, client: tinker.TrainingClient, what: str) -> str:
        with self._kept_in_mind(client, "weights", what) as name:
            return (await client.save_state(name, ttl_seconds=TTL_S)).path

    async def save_sampler(self, client: tinker.TrainingClient, what: str) -> str:
        with self._kept_in_mind(client, "sampler_weights", what) as name:
            return (await client.save_weights_for_sampler(name, ttl_seconds=TTL_S)).path

    async def save_external(self, client: tinker.TrainingClient, what: str) -> str:
        with self._kept_in_mind(client, "external_weights", what) as name:
            return (await client.save_weights_external(name, ttl_seconds=TTL_S)).path

    @contextlib.contextmanager
    def _kept_in_mind(self, client: tinker.TrainingClient, kind: str, what: str) -> Iterator[str]:
        """Note the path before anything is sent: a save that is broken off is deleted as well, and
        one that was not sent, or refused as a wrong request, is forgotten."""
        name = f"{self.name}-{what}"
        path = f"tinker://{client.model_id}/{kind}/{name}"
        self.saved[path] = "sent"
        try:
            yield name
        except SDK_ERRORS as error:
            if isinstance(error, NotInThisSdk) or is_refusal(error):
                del self.saved[path]
            else:
                self.saved[path] = "doubtful"
            raise
        self.saved[path] = "made"

    async def delete(self, path: str) -> None:
        """Delete one of the saves, as the loop does."""
        self.saved[path] = "doubtful"
        try:
            await self.rest.delete_checkpoint_from_tinker_path(path)
        except SDK_ERRORS:
            self.saved[path] = "made"
            raise
        del self.saved[path]

    async def delete_all(self) -> list[str]:
        """Delete what was saved; the paths that the service would not delete, each with why."""
        left = []
        for path, became in reversed(self.saved.items()):
            try:
                async with asyncio.timeout(DELETE_S):
                    await self._clear_away(path, SAVE_WAITS_S if became == "sent" else ())
            except TimeoutError:
                left.append(f"{path}: no answer within {DELETE_S} s")
            except SDK_ERRORS as error:
                if became != "doubtful" or not isinstance(error, tinker.NotFoundError):
                    left.append(f"{path}: {said_by(error)}")
        self.saved.clear()
        return left

    async def _clear_away(self, path: str, waits_s: Sequence[float]) -> None:
        """Delete what was saved; a save whose answer was not waited for may be made later."""
        for wait_s in waits_s:
            with contextlib.suppress(tinker.NotFoundError):
                await self.rest.delete_checkpoint_from_tinker_path(path)
                return
            await asyncio.sleep(wait_s)
        await self.rest.delete_checkpoint_from_tinker_path(path)


@contextlib.contextmanager
def quiet_sdk() -> Iterator[None]:
    """The SDK logs what is deprecated or refused as an error; here it is what is tried."""
    logger = logging.getLogger("tinker")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


async def within(work: Coroutine[Any, Any, T], limit_s: int = LIMIT_S) -> T | Refused:
    """What a probe gives, or why it gave nothing, within a limit of time.

    Raises what the SDK does where the service cannot be spoken to any more.
    """
    try:
        async with asyncio.timeout(limit_s):
            return await work
    except TimeoutError:
        return Refused(f"no answer within {limit_s} s", is_late=True)
    except PROBE_ERRORS as error:
        return refused(error)


def refused(error: Exception) -> Refused:
    """What a service said, or what is wrong with its answer; raises the error again where the
    session is over."""
    if isinstance(error, Unusable):
        return Refused(str(error))
    explained = explain(error, None)
    if explained is None:
        return Refused(f"the SDK cannot use its answer ({type(error).__name__}: {error})")
    # A 404 may be of an address that a service does not have, which is no session that is lost.
    if explained.fault == "server_error":
        return Refused(f"it failed: {said_by(error)}")
    is_absent = explained.fault == "session_lost" and isinstance(error, tinker.NotFoundError)
    if is_absent or explained.fault in ("user_error", "too_long"):
        return Refused(f"refused: {said_by(error)}")
    raise error
