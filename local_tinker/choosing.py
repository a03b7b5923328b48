"""Choosing next tokens: of each slot, the likeliest token or a draw, and how likely it was.

A token's log-probability is that of the distribution that it was sampled from, which is what
importance sampling divides by: logits / temperature, of which top-k and then top-p leave the
likeliest tokens, whose probabilities are scaled to sum to 1. Below `MIN_TEMPERATURE` the likeliest
token is taken, and its log-probability is that of the untempered distribution.

Everything is computed for all slots in one shape, or row by row, so that no bit of a choice depends
on the other slots. Nothing waits for the device but the one copy of the results at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from local_tinker.wire import SamplingParams

MIN_TEMPERATURE = 1e-5  # below it sampling is greedy; dividing by less could overflow


def is_greedy(params: SamplingParams) -> bool:
    return params.temperature < MIN_TEMPERATURE


class Wish(NamedTuple):
    """What one slot asks for: how to choose, its random number in [0, 1), how many likeliest."""

    slot: int
    params: SamplingParams
    uniform: float
    topk: int

    @property
    def is_greedy(self) -> bool:
        return is_greedy(self.params)

    @property
    def is_narrowed(self) -> bool:
        return not self.is_greedy and (self.params.top_k > 0 or self.params.top_p < 1)


class Choice(NamedTuple):
    """A token, its log-probability, and ids and log-probabilities of the likeliest if asked for.

    Where fewer tokens were left to sample from than were asked for, NaN stands for the others.
    """

    token: int
    logprob: float
    topk: tuple[np.ndarray, np.ndarray] | None = None


def choose(logits_BV: torch.Tensor, wishes: Sequence[Wish]) -> list[Choice]:
    """The next token of each wish's slot."""
    logits_BV = logits_BV.float()
    greedy = [wish for wish in wishes if wish.is_greedy]
    drawing = [wish for wish in wishes if not wish.is_greedy]
    choices: dict[int, Choice] = {}
    if greedy:
        normaliser_B1 = logits_BV.logsumexp(dim=-1, keepdim=True)
        tokens_B1 = _argmax(logits_BV)
        logprobs_B1 = logits_BV.gather(-1, tokens_B1) - normaliser_B1
        likeliest = _likeliest(logits_BV, greedy, normaliser_B1)
        choices |= _gathered(greedy, tokens_B1, logprobs_B1, likeliest)
    if drawing:
        choices |= _draw(logits_BV.double(), drawing)
    return [choices[wish.slot] for wish in wishes]


def invert(cumulative_BV: torch.Tensor, uniforms_BK: torch.Tensor) -> torch.Tensor:
    """Invert cumulative distributions, which need not end at 1, at uniforms in [0, 1)."""
    places = torch.searchsorted(cumulative_BV, uniforms_BK * cumulative_BV[:, -1:], right=True)
    return places.clamp(max=cumulative_BV.shape[-1] - 1)


def _argmax(logits_BV: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row, (B, 1)."""
    if logits_BV.device.type != "cpu":
        return logits_BV.argmax(dim=-1, keepdim=True)
    # numpy's takes a twentieth of the time of torch's (2.13, 32 rows of 1,536).
    return torch.from_numpy(logits_BV.numpy().argmax(axis=-1, keepdims=True))


def _draw(logits_BV: torch.Tensor, wishes: list[Wish]) -> dict[int, Choice]:
    temperatures_B1 = _per_slot(logits_BV, wishes, [wish.params.temperature for wish in wishes])
    uniforms_B1 = _per_slot(logits_BV, wishes, [wish.uniform for wish in wishes])
    logprobs_BV = torch.log_softmax(logits_BV / temperatures_B1, dim=-1)
    whole = [wish for wish in wishes if not wish.is_narrowed]
    narrowed = [wish for wish in wishes if wish.is_narrowed]
    choices: dict[int, Choice] = {}
    if whole:
        tokens_B1 = invert(logprobs_BV.exp().cumsum(dim=-1), uniforms_B1)
        likeliest = _likeliest(logprobs_BV, whole, torch.zeros_like(uniforms_B1))
        choices |= _gathered(whole, tokens_B1, logprobs_BV.gather(-1, tokens_B1), likeliest)
    if narrowed:
        choices |= _draw_from_few(logprobs_BV, uniforms_B1, narrowed)
    return choices


def _draw_from_few(
    logprobs_BV: torch.Tensor, uniforms_B1: torch.Tensor, wishes: list[Wish]
) -> dict[int, Choice]:
    """Draw for R wishes from what top-k and then top-p leave, likeliest tokens first."""
    slots_R = torch.tensor([wish.slot for wish in wishes], device=logprobs_BV.device)
    logprobs_RV, ids_RV = logprobs_BV[slots_R].sort(dim=-1, descending=True, stable=True)
    num_tokens = logprobs_RV.shape[-1]
    top_k_R1 = logprobs_RV.new_tensor([[w.params.top_k] for w in wishes])
    top_k_R1 = torch.where(top_k_R1 > 0, top_k_R1, num_tokens)
    top_p_R1 = logprobs_RV.new_tensor([[w.params.top_p] for w in wishes])
    ranks_1V = torch.arange(num_tokens, device=logprobs_RV.device)[None]
    cumulative_RV = torch.where(ranks_1V < top_k_R1, logprobs_RV.exp(), 0.0).cumsum(dim=-1)
    # The token that reaches top_p is still one of them.
    is_short_RV = cumulative_RV < top_p_R1 * cumulative_RV[:, -1:]
    last_R1 = torch.where(top_p_R1 < 1, is_short_RV.sum(dim=-1, keepdim=True), top_k_R1 - 1)
    last_R1 = last_R1.clamp(max=num_tokens - 1).long()
    mass_R1 = cumulative_RV.gather(-1, last_R1)
    places_R1 = torch.searchsorted(cumulative_RV, uniforms_B1[slots_R] * mass_R1, right=True)
    places_R1 = torch.minimum(places_R1, last_R1)
    logprobs_RV = torch.where(ranks_1V <= last_R1, logprobs_RV - mass_R1.log(), torch.nan)
    most = max(wish.topk for wish in wishes)
    ids, values = ids_RV[:, :most].cpu().numpy(), logprobs_RV[:, :most].cpu().numpy()
    likeliest = {
        wish.slot: (ids[row, : wish.topk], values[row, : wish.topk])
        for row, wish in enumerate(wishes)
        if wish.topk
    }
    tokens = ids_RV.gather(-1, places_R1).squeeze(-1).tolist()
    logprobs = logprobs_RV.gather(-1, places_R1).squeeze(-1).tolist()
    return {
        wish.slot: Choice(token, logprob, likeliest.get(wish.slot))
        for wish, token, logprob in zip(wishes, tokens, logprobs, strict=True)
    }


def _per_slot(logits_BV: torch.Tensor, wishes: list[Wish], values: list[float]) -> torch.Tensor:
    """A column of one value per slot; 1 where no wish is."""
    column = [1.0] * len(logits_BV)
    for wish, value in zip(wishes, values, strict=True):
        column[wish.slot] = value
    return logits_BV.new_tensor(column)[:, None]


def _likeliest(
    scores_BV: torch.Tensor, wishes: list[Wish], normaliser_B1: torch.Tensor
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Ids and log-probabilities of the likeliest tokens of the slots that ask for them."""
    found = {}
    for k in sorted({wish.topk for wish in wishes} - {0}):
        values_BK, ids_BK = scores_BV.topk(k, dim=-1)
        values, ids = (values_BK - normaliser_B1).cpu().numpy(), ids_BK.cpu().numpy()
        found |= {w.slot: (ids[w.slot], values[w.slot]) for w in wishes if w.topk == k}
    return found


def _gathered(
    wishes: list[Wish],
    tokens_B1: torch.Tensor,
    logprobs_B1: torch.Tensor,
    likeliest: dict[int, tuple[np.ndarray, np.ndarray]],
) -> dict[int, Choice]:
    tokens, logprobs = tokens_B1.squeeze(-1).tolist(), logprobs_B1.squeeze(-1).tolist()
    return {
        wish.slot: Choice(tokens[wish.slot], logprobs[wish.slot], likeliest.get(wish.slot))
        for wish in wishes
    }
