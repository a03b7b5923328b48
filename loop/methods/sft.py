"""Supervised fine-tuning: the answers of the rows are made likely, each row counting alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from data_selector import Selection
from loop.methods.method import StepInFlight, StepResult, Workplace, adam_params, parts_of

if TYPE_CHECKING:
    import numpy as np
    import tinker


class Sft:
    """Cross-entropy on the rows' answers."""

    learns_answers = True

    def __init__(self, workplace: Workplace) -> None:
        self._plan = workplace.plan

    async def begin_round(self, selection: Selection) -> None:
        """Nothing: the rows are rendered."""

    async def submit(
        self, client: tinker.TrainingClient, step: int, example_ids: list[str], lr: float
    ) -> StepInFlight:
        config, rendering = self._plan.config, self._plan.rendering
        datums = [rendering[example_id].datum for example_id in example_ids]
        forward_backwards = [
            client.forward_backward(list(part), "cross_entropy")
            for part in parts_of(datums, config.data.accumulate)
        ]
        optim_step = client.optim_step(adam_params(config, lr))
        num_tokens = sum(rendering[example_id].info.num_tokens for example_id in example_ids)
        return StepInFlight(step, lr, example_ids, forward_backwards, optim_step, num_tokens)

    async def finish(self, pending: StepInFlight) -> StepResult:
        outputs = [await future for future in pending.forward_backwards]
        rendered = [self._plan.rendering[example_id] for example_id in pending.example_ids]
        loss, nll = batch_loss(
            [made["logprobs"].to_numpy() for output in outputs for made in output.loss_fn_outputs],
            [one.datum.loss_fn_inputs["weights"].to_numpy() for one in rendered],
            total_weight=math.fsum(one.info.weight for one in rendered),
        )
        return StepResult(
            loss,
            nll,
            num_tokens=pending.num_tokens,
            num_loss_tokens=sum(one.info.num_loss_tokens for one in rendered),
        )


class BatchLoss(NamedTuple):
    """`loss` is the mean over examples of their mean per token, each example weighted with its
    row's weight; `nll` is the mean over loss tokens, unweighted."""

    loss: float
    nll: float


def batch_loss(
    logprobs: Sequence[np.ndarray], weights: Sequence[np.ndarray], total_weight: float
) -> BatchLoss:
    """The loss of a batch whose examples' weights each sum to the row's weight; one array per
    example, (N,) or (N, K) of soft targets. `total_weight` is the sum of the rows' weights."""
    pairs = list(zip(logprobs, weights, strict=True))
    loss = -math.fsum(float(w.ravel() @ lp.ravel()) for lp, w in pairs) / total_weight
    nlls, num_loss_tokens = [], 0
    for lp, w in pairs:
        # Of a soft target the weights of one position share what its token counts.
        w_NK, lp_NK = w.reshape(len(w), -1), lp.reshape(len(w), -1)
        counts = w_NK.sum(axis=1)
        is_loss = counts > 0
        num_loss_tokens += int(is_loss.sum())
        shares = w_NK[is_loss] / counts[is_loss, None]
        nlls.append(float((shares * lp_NK[is_loss]).sum()))
    return BatchLoss(loss, -math.fsum(nlls) / num_loss_tokens)
