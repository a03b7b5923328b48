"""A training run, and what its steps do: losses and their gradients, and AdamW.

Losses are plain sums over all positions of all datums, as the protocol demands; the client does
the normalising.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from local_tinker import losses
from local_tinker.lora import LoraShape
from local_tinker.micro_batches import micro_batches
from local_tinker.target_logprobs import target_logprobs
from local_tinker.wire import AdamParams, ForwardBackward, LossDatum, UserError

MAX_PASS_LOGITS = 64 * 1024 * 1024  # rows x tokens x vocabulary of one pass, were all trained


class ForwardResult(NamedTuple):
    """The request's loss, and per datum the logprobs of its targets, shaped as they are."""

    loss_sum: float
    logprobs: list[np.ndarray]


@dataclass
class TrainingRun:
    """A LoRA adapter that is being trained, with its optimizer."""

    run_id: str
    adapter: str
    shape: LoraShape
    optimizer: torch.optim.AdamW
    named_parameters: list[tuple[str, torch.nn.Parameter]]
    user_metadata: dict[str, str]
    num_optimizer_steps: int = 0
    refusal: str | None = None  # why the next step must not apply what has been accumulated

    @property
    def num_bytes(self) -> int:
        """Weights, gradients and AdamW's two moments."""
        return 4 * sum(p.numel() * p.element_size() for _, p in self.named_parameters)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything a run is made of, under names that do not depend on the process."""
        made = {}
        for name, parameter in self.named_parameters:
            stable = _stable_name(name, self.adapter)
            made[f"{stable}.value"] = parameter.detach()
            if parameter.grad is not None:
                made[f"{stable}.grad"] = parameter.grad
            for key, value in self.optimizer.state.get(parameter, {}).items():
                made[f"{stable}.{key}"] = value
        return made

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set what `tensors` names and forget the rest: gradients and optimizer state."""
        self.optimizer.state.clear()
        self.optimizer.zero_grad(set_to_none=True)
        for name, parameter in self.named_parameters:
            prefix = f"{_stable_name(name, self.adapter)}."
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if "value" in own:
                parameter.data.copy_(own.pop("value"))
            if "grad" in own:
                parameter.grad = own.pop("grad").to(parameter.device)
            if own:  # AdamW keeps its step counter on the CPU, the moments beside the parameter
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device)
                    for key, value in own.items()
                }


def forward_backward(
    model: Any, run: TrainingRun, request: ForwardBackward, config: dict[str, float]
) -> ForwardResult:
    """Add the gradient of a request's loss to the run's, whose adapter is the model's active one.

    The request has been checked and `config` is what `losses.check_loss` gave.
    """
    loss_sum = 0.0
    logprobs: list[np.ndarray | None] = [None] * len(request.data)
    if not request.forward_only:
        refusal, run.refusal = run.refusal, "a forward_backward since the last step failed"
    for places in _passes(request.data, model.get_input_embeddings().weight.shape[0]):
        rows = [request.data[place] for place in places]
        with torch.set_grad_enabled(not request.forward_only):
            loss, rows_logprobs = _loss(model, rows, request, config)
        if not request.forward_only:
            loss.backward()
        loss_sum += float(loss.detach())
        for place, row_logprobs in zip(places, rows_logprobs, strict=True):
            logprobs[place] = row_logprobs
    if not request.forward_only:
        is_finite = math.isfinite(loss_sum)
        run.refusal = refusal if is_finite else f"a loss since the last step is {loss_sum}"
    return ForwardResult(loss_sum, [row for row in logprobs if row is not None])


def _passes(data: tuple[LossDatum, ...], vocab_size: int) -> list[list[int]]:
    """The rows of each pass; they have targets of one shape, (N,) or (N, K) with one K."""
    places_of = defaultdict(list)
    for place, datum in enumerate(data):
        places_of[datum.target_tokens.shape[1:]].append(place)
    passes = []
    for shape, places in places_of.items():
        max_tokens = MAX_PASS_LOGITS // max((vocab_size, *shape))
        lengths = [data[place].input_tokens_N.size for place in places]
        passes += [[places[i] for i in rows] for rows in micro_batches(lengths, max_tokens)]
    return passes


def _loss(
    model: Any, rows: list[LossDatum], request: ForwardBackward, config: dict[str, float]
) -> tuple[torch.Tensor, list[np.ndarray]]:
    """The loss of the rows of one pass, and the log-probabilities of their targets."""
    lengths = [row.input_tokens_N.size for row in rows]
    tokens_BT = np.zeros((len(rows), max(lengths)), dtype=np.int64)
    is_real_BT = np.arange(max(lengths)) < np.array(lengths)[:, None]
    tokens_BT[is_real_BT] = np.concatenate([row.input_tokens_N for row in rows])
    inputs = {
        name: np.concatenate([row.inputs[name] for row in rows])
        for name in losses.required_inputs(request.loss_fn)
    }
    is_trained_N = losses.is_trained(request.loss_fn, config, inputs) & (not request.forward_only)
    if not request.forward_only and not is_trained_N.any():
        is_trained_N[0] = True  # a loss of weight 0 has a gradient, too: zeros
    targets = np.concatenate([row.target_tokens for row in rows])

    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(model.device)

    logprobs = target_logprobs(
        model,
        on_device(tokens_BT),
        on_device(is_real_BT),
        on_device(targets.reshape(len(targets), -1)),
        on_device(is_trained_N),
    ).reshape(targets.shape)
    loss = losses.loss_sum(
        request.loss_fn,
        config,
        logprobs,
        {name: on_device(values) for name, values in inputs.items()},
        lengths,
    )
    host = logprobs.detach().cpu().numpy()
    return loss, np.split(host, np.cumsum(lengths)[:-1])


def optim_step(run: TrainingRun, params: AdamParams) -> dict[str, float]:
    """Take one AdamW step with the accumulated gradients, then clear them.

    Gradients that are not finite, or come from a loss that is not or a pass that failed, are
    cleared instead; the weights stay as they were.
    """
    gradients = [p.grad for _, p in run.named_parameters if p.grad is not None]
    if not gradients and run.refusal is None:
        raise UserError(
            "optim_step without a forward_backward before it: there are no gradients to apply"
        )
    norm = torch.nn.utils.get_total_norm(gradients)
    if params.grad_clip_norm > 0:
        parameters = [p for _, p in run.named_parameters]
        torch.nn.utils.clip_grads_with_norm_(parameters, params.grad_clip_norm, norm)
    refusal = run.refusal or (None if torch.isfinite(norm) else "the gradients are not finite")
    if refusal is not None:
        run.refusal = None
        run.optimizer.zero_grad(set_to_none=True)
        raise UserError(f"{refusal}, so the optimizer step was refused and its gradients cleared")
    for group in run.optimizer.param_groups:
        group.update(
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )
    try:
        run.optimizer.step()
    finally:
        run.optimizer.zero_grad(set_to_none=True)
    run.num_optimizer_steps += 1
    return {"grad_norm": float(norm)}


def _stable_name(parameter_name: str, adapter: str) -> str:
    """The parameter's name without the adapter's, which differs from process to process."""
    return parameter_name.replace(f".{adapter}.", ".")


def on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
