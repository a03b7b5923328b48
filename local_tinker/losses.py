"""The loss functions of forward_backward: which there are, what they need, and their values.

The formulas are the vendor's published ones (its documentation, "Loss Functions"), each with the
paper that it comes from. lp is the log-probability of a target under the current policy, q the
sampler's (input `logprobs`), A the advantage and r = exp(lp - q) their ratio.

Suffixes: K targets of one position, N the positions of all rows one after another. There is no
padding here, so that none can touch a value, a gradient, or the order of a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from local_tinker.wire import UserError


class _Rows(NamedTuple):
    """The positions of all rows; `lengths` says how many of them each row has."""

    lp_N: torch.Tensor
    inputs: dict[str, torch.Tensor]
    lengths: list[int]


def _weighted(weights_N: torch.Tensor, values_N: torch.Tensor) -> torch.Tensor:
    """weights * values, where what weighs nothing is 0 even when its value is infinite."""
    return weights_N * torch.where(weights_N != 0, values_N, 0.0)


def _log_ratio(rows: _Rows) -> torch.Tensor:
    """lp - q, and 0 without gradient where the advantage is 0: its exp must not become inf * 0."""
    return torch.where(rows.inputs["advantages"] != 0, rows.lp_N - rows.inputs["logprobs"], 0.0)


def _clipped(
    log_ratio_N: torch.Tensor, advantages_N: torch.Tensor, config: Mapping[str, float]
) -> torch.Tensor:
    """min(r*A, clip(r, low, high)*A), the objective that ppo and gspo share."""
    low, high = config["clip_low_threshold"], config["clip_high_threshold"]
    # Where the upper clip decides there is no gradient; an r that overflows would make it 0 * inf.
    is_capped_N = (advantages_N > 0) & (log_ratio_N.detach().exp() > high)
    ratio_N = torch.where(is_capped_N, log_ratio_N.detach(), log_ratio_N).exp()
    return torch.minimum(ratio_N * advantages_N, ratio_N.clamp(low, high) * advantages_N)


# --- objectives: what each position adds; the loss is minus their sum ----------------------------


def _cross_entropy(rows: _Rows, config: Mapping[str, float]) -> torch.Tensor:
    """weights * lp, with weights of any sign; with K targets per position each has its weight."""
    return _weighted(rows.inputs["weights"], rows.lp_N)


def _importance_sampling(rows: _Rows, config: Mapping[str, float]) -> torch.Tensor:
    """r * A: the policy gradient, corrected for a sampler that differs from the policy."""
    return _log_ratio(rows).exp() * rows.inputs["advantages"]


def _ppo(rows: _Rows, config: Mapping[str, float]) -> torch.Tensor:
    """min(r*A, clip(r, low, high)*A) for each token (PPO: Schulman et al. 2017)."""
    return _clipped(_log_ratio(rows), rows.inputs["advantages"], config)


def _cispo(rows: _Rows, config: Mapping[str, float]) -> torch.Tensor:
    """detach(clip(r, low, high)) * lp * A (CISPO: MiniMax-M1 2025).

    The clipped ratio is a coefficient, so clipped tokens keep a gradient.
    """
    ratio_N = _log_ratio(rows).detach().exp()
    ratio_N = ratio_N.clamp(config["clip_low_threshold"], config["clip_high_threshold"])
    return _weighted(ratio_N * rows.inputs["advantages"], rows.lp_N)


def _dro(rows: _Rows, config: Mapping[str, float]) -> torch.Tensor:
    """lp*A - beta/2 * (lp - q)^2 (DRO: Richemond et al. 2024).

    The square pulls on every position, also where the advantage is 0.
    """
    linear_N = _weighted(rows.inputs["advantages"], rows.lp_N)
    if config["beta"] == 0:
        return linear_N  # no square at all, rather than 0 * inf
    return linear_N - 0.5 * config["beta"] * (rows.lp_N - rows.inputs["logprobs"]).square()


def _gspo(rows: _Rows, config: Mapping[str, float]) -> torch.Tensor:
    """min(s_t*A, clip(s_t, low, high)*A) (GSPO-token: Zheng et al. 2025).

    s = exp(mean of lp - q over the positions of the row where `sequence_ratio_mask` is not 0), and
    s_t has the value of s and the gradient of s * lp. A row whose mask is all 0 names no token to
    compare the policies on; its s is 1, as if it were on-policy (the published code gives nan).

    The vendor's default thresholds are not verified; 0.8 and 1.2 are ppo's. The paper's own range,
    1 - 3e-4 to 1 + 4e-4, is far narrower, so better set them.
    """
    advantages_N = rows.inputs["advantages"]
    log_ratio_N = rows.lp_N.detach() - rows.inputs["logprobs"]
    in_ratio_N = rows.inputs["sequence_ratio_mask"] != 0
    log_s_N = torch.cat(
        [
            (row[in_ratio].mean() if in_ratio.any() else row.new_zeros(())).expand(len(row))
            for row, in_ratio in zip(
                log_ratio_N.split(rows.lengths), in_ratio_N.split(rows.lengths), strict=True
            )
        ]
    )
    # An infinite lp minus itself would be nan; it has no gradient to hand on.
    own_N = torch.where(rows.lp_N.isfinite(), rows.lp_N, 0.0)
    log_s_t_N = torch.where(advantages_N != 0, log_s_N + (own_N - own_N.detach()), 0.0)
    return _clipped(log_s_t_N, advantages_N, config)


# --- the table, and what others call --------------------------------------------------------------


class Loss(NamedTuple):
    """A loss function: the inputs it needs besides target_tokens, its config and its objective.

    A config value of None has no default and must be given.
    """

    inputs: tuple[str, ...]
    config: dict[str, float | None]
    objective: Callable[[_Rows, Mapping[str, float]], torch.Tensor]


_POLICY = ("logprobs", "advantages")
_PPO_CLIP = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
_CISPO_CLIP = {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}

LOSSES = {
    "cross_entropy": Loss(("weights",), {}, _cross_entropy),
    "importance_sampling": Loss(_POLICY, {}, _importance_sampling),
    "ppo": Loss(_POLICY, {**_PPO_CLIP}, _ppo),
    "cispo": Loss(_POLICY, {**_CISPO_CLIP}, _cispo),
    "dro": Loss(_POLICY, {"beta": None}, _dro),
    "gspo": Loss((*_POLICY, "sequence_ratio_mask"), {**_PPO_CLIP}, _gspo),
}

_REFUSED = {  # loss functions that the SDK can name, and what to do instead
    "stable_reinforce": "needs records made while sampling, which this service does not keep; use "
    "importance_sampling, ppo, cispo or gspo",
    "custom": "is not supported on the server; use forward_backward_custom, which computes the "
    "loss in the client",
}


def check_loss(loss_fn: str, config: Mapping[str, float | str]) -> dict[str, float]:
    """Fill in the defaults of a loss's config. Raises `UserError` for what cannot be computed."""
    if loss_fn in _REFUSED:
        raise UserError(f"loss function {loss_fn!r} {_REFUSED[loss_fn]}")
    if loss_fn not in LOSSES:
        raise UserError(f"unknown loss function {loss_fn!r}; this service has {', '.join(LOSSES)}")
    defaults = LOSSES[loss_fn].config
    if unknown := sorted(config.keys() - defaults.keys()):
        raise UserError(
            f"{loss_fn} has no config key {', '.join(unknown)}; it has "
            f"{', '.join(defaults) or 'none'}"
        )
    resolved = {}
    for key, default in defaults.items():
        value = config.get(key, default)
        if value is None:
            raise UserError(
                f'{loss_fn} needs {key}, which has no default; set loss_fn_config={{"{key}": 0.05}}'
            )
        if isinstance(value, str) or not math.isfinite(value):
            raise UserError(f"{loss_fn}: {key} must be a finite number, found {value!r}")
        resolved[key] = float(value)
    low, high = resolved.get("clip_low_threshold", 0.0), resolved.get("clip_high_threshold", 0.0)
    if low > high:
        raise UserError(
            f"{loss_fn}: clip_low_threshold {low} exceeds clip_high_threshold {high}; both bound "
            "the ratio itself, as in 0.8 and 1.2"
        )
    return resolved


def required_inputs(loss_fn: str) -> tuple[str, ...]:
    """The names in loss_fn_inputs that a supported loss needs besides target_tokens."""
    return LOSSES[loss_fn].inputs


def is_trained(
    loss_fn: str, config: Mapping[str, float], inputs: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Which positions of a row, (N,), can get a gradient from this loss: most others have weight 0.

    `dro` pulls on all of them, unless its beta is 0.
    """
    factor = inputs["weights" if loss_fn == "cross_entropy" else "advantages"]
    if config.get("beta"):
        return np.ones(len(factor), dtype=np.bool_)
    return (factor != 0).reshape(len(factor), -1).any(axis=1)


def loss_sum(
    loss_fn: str,
    config: Mapping[str, float],
    logprobs: torch.Tensor,
    inputs: Mapping[str, torch.Tensor],
    lengths: list[int],
) -> torch.Tensor:
    """The loss, summed over the positions of all rows and normalised by nothing.

    `config` is what `check_loss` gave. `logprobs` is (N,), or (N, K) for cross_entropy, and so are
    its weights; all other inputs are (N,). `lengths` says how many of the N each row has.
    """
    loss = LOSSES[loss_fn]
    rows = _Rows(logprobs, {name: inputs[name] for name in loss.inputs}, lengths)
    return -loss.objective(rows, config).sum()
