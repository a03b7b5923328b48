"""What a way of training does in a round, as the loop sees it: steps submitted, and what came of
them.

A method is made once for a run and is told of each round before its first step. Its steps are
submitted in order and finished in order; between the two, as many of them are in flight as
`loop.planning.steps.most_in_flight` allows its kind.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from config_schema import TrainingConfig
from data_selector import Selection
from hyperparam_utils import ADAM_BETAS, ADAM_EPS
from ledger.store import RunStore
from loop.planning.plan import Plan
from loop.reports.progress import Progress

if TYPE_CHECKING:
    import tinker

T = TypeVar("T")


@dataclass(frozen=True)
class Workplace:
    """What a method works with besides the client that it trains."""

    plan: Plan
    store: RunStore
    progress: Progress
    # A watched client for saved weights, or for a base model (None: the run's).
    open_sampler: Callable[[str | None, str | None], Awaitable[tinker.SamplingClient]]
    watch: Callable[[tinker.SamplingClient], tinker.SamplingClient]  # one that a method has opened


class StepInFlight(NamedTuple):
    """A submitted optimizer step: the forward-backward futures (one per part) and the step's."""

    step: int
    lr: float
    example_ids: list[str]
    forward_backwards: list[Any]
    optim_step: Any
    num_tokens: int  # that are trained on
    made: Any = None  # what the method keeps of it until it is finished
    num_prompt_tokens: int = 0  # read for it without a gradient, which no event has counted yet,
    num_sampled_tokens: int = 0  # and sampled for it
    rollouts: Mapping[str, str] = {}  # the `RolloutsFile` that these were for, where it has one


@dataclass(frozen=True)
class StepResult:
    """What came of a step. `loss` is what was minimised, as a mean over the rows or over the
    sampled tokens; `nll` is the mean over the trained tokens of their negative log-probabilities
    before the step. Both are in nats."""

    loss: float
    nll: float
    num_tokens: int
    num_loss_tokens: int
    measures: Mapping[str, float] = field(default_factory=dict)  # the method's own, by name
    num_prompt_tokens: int = 0  # read for this step without a gradient,
    num_sampled_tokens: int = 0  # and sampled for it
    rollouts: Mapping[str, str] = field(default_factory=dict)  # `RolloutsFile`, where it has one
    counted_before: bool = False  # both numbers, by a step that was taken before


class Method(Protocol):
    """A way of training."""

    learns_answers: (
        bool  # `nll` is of answers that are to become likely, so that it tells a divergence
    )

    async def begin_round(self, selection: Selection) -> None:
        """Get ready what the round's steps need; a resumed round begins again."""
        ...

    async def submit(
        self, client: tinker.TrainingClient, step: int, example_ids: list[str], lr: float
    ) -> StepInFlight:
        """Submit a step, as far as that can be done before its results."""
        ...

    async def finish(self, pending: StepInFlight) -> StepResult:
        """Await the forward-backwards of a step; the optimizer step is the loop's to await."""
        ...


def adam_params(config: TrainingConfig, lr: float) -> tinker.AdamParams:
    import tinker

    return tinker.AdamParams(
        learning_rate=lr,
        beta1=ADAM_BETAS[0],
        beta2=ADAM_BETAS[1],
        eps=ADAM_EPS,
        weight_decay=config.weight_decay,
    )


def parts_of(items: Sequence[T], num_parts: int) -> list[Sequence[T]]:
    """A batch in at most so many parts of nearly one size."""
    size = math.ceil(len(items) / num_parts)
    return [items[start : start + size] for start in range(0, len(items), size)]
