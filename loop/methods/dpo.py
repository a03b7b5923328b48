"""Direct preference optimization: of two answers the preferred one is made likelier than it is
under the reference, by more than the other one.

The loss of a pair is -log sigmoid(beta * (d_chosen - d_rejected)), d being the log-probability of
an answer, summed over its tokens, minus what it is under the reference (Rafailov et al. 2023); it
is the cookbook's. The gradient of a step is that of the mean over its batch of the pairs' losses,
each times its row's weight. It takes two passes, as the loss is worked out here between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from data_selector import Selection
from evaluation.preferences import PairLogprobs
from loop.methods.method import StepInFlight, StepResult, Workplace, adam_params, parts_of
from loop.methods.reference import reference_logprobs
from rows.rendering import RenderedExample

if TYPE_CHECKING:
    import tinker
    import torch

ROUNDING_NATS = 1e-3  # a sampler and a trainer differ by less in float32, over a long answer


class Dpo:
    """Preferences, held back by the weights that the run began with."""

    learns_answers = False  # the chosen ones may become less likely, if the others do so more

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._plan = workplace.plan
        self._reference: dict[str, PairLogprobs] = {}

    async def begin_round(self, selection: Selection) -> None:
        """Have the reference's log-probabilities of all pairs of the round."""
        ids = [pick.example_id for pick in selection.picks]
        self._reference = await reference_logprobs(self._workplace, ids, selection.round)

    async def submit(
        self, client: tinker.TrainingClient, step: int, example_ids: list[str], lr: float
    ) -> StepInFlight:
        config = self._plan.config
        assert config.dpo is not None, "the schema gives the method its group"
        pairs = [self._pair(example_id) for example_id in example_ids]
        losses = [
            PartLoss(part, len(pairs), config.dpo.beta)
            for part in parts_of(pairs, config.data.accumulate)
        ]
        forward_backwards = [
            client.forward_backward_custom(part.datums, part.loss) for part in losses
        ]
        optim_step = client.optim_step(adam_params(config, lr))
        num_tokens = sum(pair.num_tokens for pair in pairs)
        return StepInFlight(
            step,
            lr,
            example_ids,
            forward_backwards,
            optim_step,
            num_tokens,
            losses,
            num_prompt_tokens=num_tokens,  # of the pass before the loss
        )

    async def finish(self, pending: StepInFlight) -> StepResult:
        for future in pending.forward_backwards:
            await future
        parts: list[PartLoss] = pending.made
        return step_result([one for part in parts for one in part.outcomes])

    def _pair(self, example_id: str) -> RenderedPair:
        rendering = self._plan.rendering
        return RenderedPair(
            rendering[example_id], rendering.rejected(example_id), self._reference[example_id]
        )


# --- the loss -------------------------------------------------------------------------------------


class RenderedPair(NamedTuple):
    """Both sides of a pair, and their log-probabilities under the reference."""

    chosen: RenderedExample
    rejected: RenderedExample
    reference: PairLogprobs

    @property
    def num_tokens(self) -> int:
        """Of both sides."""
        return self.chosen.info.num_tokens + self.rejected.info.num_tokens


class PairOutcome(NamedTuple):
    """A pair under the weights before a step; log-probabilities are sums over an answer, nats."""

    pair: RenderedPair
    loss: float
    margin: float  # beta * (d_chosen - d_rejected)
    chosen: float
    rejected: float

    @property
    def gains(self) -> tuple[float, float]:
        """d of both answers."""
        reference = self.pair.reference
        return self.chosen - reference.chosen, self.rejected - reference.rejected

    @property
    def share_right(self) -> float:
        """1 where d_chosen > d_rejected, and a half where they differ by rounding alone, as they do
        before the first step, whose weights are the reference's."""
        chosen, rejected = self.gains
        return 0.5 if abs(chosen - rejected) < ROUNDING_NATS else float(chosen > rejected)


@dataclass
class PartLoss:
    """The loss of a part of a batch of `num_in_batch` pairs, and what came of each of its pairs."""

    pairs: Sequence[RenderedPair]
    num_in_batch: int
    beta: float
    outcomes: list[PairOutcome] = field(default_factory=list)

    @property
    def datums(self) -> list[tinker.Datum]:
        """The chosen and the rejected side of each pair, in turn."""
        return [side.datum for pair in self.pairs for side in (pair.chosen, pair.rejected)]

    def loss(
        self, data: list[tinker.Datum], logprobs: list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The part's share of the mean loss of the batch; one tensor of tokens for each datum."""
        import torch

        self.outcomes.clear()
        sums = [_summed(datum, one) for datum, one in zip(data, logprobs, strict=True)]
        sides = zip(self.pairs, sums[::2], sums[1::2], strict=True)
        losses = [self._of_pair(*one) for one in sides]
        weights = [pair.chosen.info.weight for pair in self.pairs]
        total = torch.stack([w * one for w, one in zip(weights, losses, strict=True)]).sum()
        if not torch.isfinite(total):
            # No gradient can be sent that is no number, and the service waits for one. The loop
            # stops the run by the loss that is recorded here, so this one trains nothing.
            total = torch.stack([torch.nan_to_num(one).sum() * 0.0 for one in logprobs]).sum()
        return total / self.num_in_batch, {}

    def _of_pair(
        self, pair: RenderedPair, chosen: torch.Tensor, rejected: torch.Tensor
    ) -> torch.Tensor:
        import torch
        from tinker_cookbook.preference.train_dpo import compute_dpo_loss

        known = [
            torch.tensor(one, dtype=chosen.dtype)
            for one in (pair.reference.chosen, pair.reference.rejected)
        ]
        loss, metrics = compute_dpo_loss(
            [chosen], [rejected], [known[0]], [known[1]], dpo_beta=self.beta
        )
        self.outcomes.append(
            PairOutcome(
                pair,
                float(loss.detach()),
                metrics["margin"],
                float(chosen.detach()),
                float(rejected.detach()),
            )
        )
        return loss


def _summed(datum: tinker.Datum, logprobs_T: torch.Tensor) -> torch.Tensor:
    """The log-probability of an answer, in float64; each of its tokens counts alike, whatever the
    datum's weights come to."""
    mask: Any = datum.loss_fn_inputs["weights"].to_torch() > 0
    return logprobs_T.double()[mask].sum()


# --- what came of a step --------------------------------------------------------------------------


def step_result(outcomes: Sequence[PairOutcome]) -> StepResult:
    """What came of a step's pairs, under the weights before it.

    `nll` is of the chosen answers. The measures: `margin` as the loss has it and `accuracy`, the
    share of pairs with d_chosen above d_rejected, means over the pairs; `chosen_logprob`
    and `rejected_logprob`, nats a token;
    `chosen_gain`, what of `chosen_logprob` is above the reference's; and `kl`, an estimate of
    the KL to the reference in nats an answer, half the mean square of d over both answers of each
    pair (k2 of Schulman 2020, "Approximating KL divergence"). It is taken on the answers of the
    rows, not on sampled ones, and so says how far the weights have gone on these.
    """
    num_chosen, num_rejected = (
        sum(side.info.num_loss_tokens for side in sides)
        for sides in (
            [one.pair.chosen for one in outcomes],
            [one.pair.rejected for one in outcomes],
        )
    )
    chosen = math.fsum(one.chosen for one in outcomes)
    rejected = math.fsum(one.rejected for one in outcomes)
    gains = [gain for one in outcomes for gain in one.gains]
    n = len(outcomes)
    num_tokens = sum(one.pair.num_tokens for one in outcomes)
    return StepResult(
        loss=math.fsum(one.pair.chosen.info.weight * one.loss for one in outcomes) / n,
        nll=-chosen / num_chosen,
        num_tokens=num_tokens,
        num_loss_tokens=num_chosen + num_rejected,
        measures={
            "margin": math.fsum(one.margin for one in outcomes) / n,
            "accuracy": sum(one.share_right for one in outcomes) / n,
            "kl": math.fsum(gain**2 for gain in gains) / (2 * len(gains)),
            "chosen_logprob": chosen / num_chosen,
            "rejected_logprob": rejected / num_rejected,
            "chosen_gain": math.fsum(gains[::2]) / num_chosen,
        },
        num_prompt_tokens=num_tokens,  # of the pass before the loss
    )


def pair_loss(now: PairLogprobs, reference: PairLogprobs, beta: float) -> float:
    """The loss of a pair by its log-probabilities, in nats."""
    margin = beta * ((now.chosen - reference.chosen) - (now.rejected - reference.rejected))
    # log(1 + exp(-margin)) without an overflow.
    return max(0.0, -margin) + math.log1p(math.exp(-abs(margin)))
