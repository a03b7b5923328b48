"""The embedded service with one planted difference: a hook around the engine's maths, each of them
something that an engine of others was seen to do, or could.

The protocol, the queues and all else stay what they are.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch

from local_tinker import (
    lora,
    losses,
    sampling,
    sampling_routes,
    state,
    training,
    training_routes,
    worker,
)
from local_tinker.choosing import Choice
from local_tinker.engine import Engine
from local_tinker.lora import LoraShape
from local_tinker.sample_rows import Row
from local_tinker.wire import UserError

Plant = Callable[[pytest.MonkeyPatch], None]


def _adam(**forced: float) -> Plant:
    """Parameters of AdamW that are not what was sent."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        step = training.optim_step
        patch.setattr(
            training, "optim_step", lambda run, params: step(run, params.model_copy(update=forced))
        )

    return plant


def _loss(change: Callable[[Any, dict[str, Any]], Any]) -> Plant:
    """`change` gets the sum of a pass and its inputs."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        summed = losses.loss_sum

        def loss_sum(loss_fn: str, config: Any, logprobs: Any, inputs: Any, lengths: Any) -> Any:
            return change(lambda given: summed(loss_fn, config, logprobs, given, lengths), inputs)

        patch.setattr(losses, "loss_sum", loss_sum)

    return plant


def _created(change: Callable[[LoraShape, int | None], tuple[LoraShape, int | None]]) -> Plant:
    """Adapters of another shape or seed than was asked for."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        create = Engine.create_run

        def create_run(
            self: Engine, run_id: str, shape: LoraShape, seed: int | None, user_metadata: Any
        ) -> Any:
            return create(self, run_id, *change(shape, seed), user_metadata)

        patch.setattr(Engine, "create_run", create_run)

    return plant


def ignored_seed(patch: pytest.MonkeyPatch) -> None:
    """Each adapter has a seed of its own, the same ones in every run of a test."""
    numbers = itertools.count(1)
    _created(lambda shape, seed: (shape, next(numbers)))(patch)


def _scaled(set_scale: Callable[[Any], None], scale_of: Callable[[int], float]) -> Plant:
    """Another scale of the update, in training and in sampling alike."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        make = lora.make_config

        def make_config(*args: Any) -> Any:
            config = make(*args)
            set_scale(config)
            return config

        def scalings(self: lora.LoraShape, names: Iterable[str]) -> dict[str, float]:
            return dict.fromkeys(names, scale_of(self.rank))

        patch.setattr(lora, "make_config", make_config)
        patch.setattr(lora.LoraShape, "scalings", scalings)

    return plant


def _set_twice_the_rank(config: Any) -> None:
    config.lora_alpha = 2 * config.r


def _set_rslora(config: Any) -> None:
    config.use_rslora = True


def any_name(patch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for, the model that is served is trained, as SkyRL does."""
    patch.setattr(state.State, "engine_named", lambda self, name: next(iter(self.engines.values())))


def untempered(patch: pytest.MonkeyPatch) -> None:
    choose = sampling.choose

    def choosing(logits_BV: torch.Tensor, wishes: Any) -> list[Choice]:
        logprobs_BV = logits_BV.float().log_softmax(-1)
        return [
            choice._replace(logprob=float(logprobs_BV[wish.slot, choice.token]))
            for wish, choice in zip(wishes, choose(logits_BV, wishes), strict=True)
        ]

    patch.setattr(sampling, "choose", choosing)


def unrestored_optimizer(patch: pytest.MonkeyPatch) -> None:
    load = Engine.load_run

    def load_run(self: Engine, *args: Any, with_optimizer: bool, **others: Any) -> Any:
        return load(self, *args, with_optimizer=False, **others)

    patch.setattr(Engine, "load_run", load_run)


def load_at_any_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(training_routes, "refuse_late_load", lambda seq_id: None)


def truncated(patch: pytest.MonkeyPatch) -> None:
    """Rows are cut at 64 tokens, and what is beyond has a log-probability of 0."""
    forward = training.forward_backward
    most = 64

    def forward_backward(model: Any, run: Any, request: Any, config: Any) -> Any:
        data = tuple(
            datum._replace(
                input_tokens_N=datum.input_tokens_N[:most],
                target_tokens=datum.target_tokens[:most],
                inputs={name: values[:most] for name, values in datum.inputs.items()},
            )
            for datum in request.data
        )
        result = forward(model, run, dataclasses.replace(request, data=data), config)
        lengths = [datum.input_tokens_N.size for datum in request.data]
        whole = [
            np.pad(row, (0, length - len(row)))
            for row, length in zip(result.logprobs, lengths, strict=True)
        ]
        return result._replace(logprobs=whole)

    patch.setattr(training, "forward_backward", forward_backward)


def low_ranks(patch: pytest.MonkeyPatch) -> None:
    """Ranks above 32 are refused, as SkyRL does."""

    def refusing(shape: LoraShape, seed: int | None) -> tuple[LoraShape, int | None]:
        if shape.rank > 32:
            raise UserError(f"LoRA rank {shape.rank} must be between 1 and 32")
        return shape, seed

    _created(refusing)(patch)


def plain_prompts(patch: pytest.MonkeyPatch) -> None:
    """Of a prompt the likeliest tokens are refused, and the first token's place is left out, as
    SkyRL's JAX backend does."""
    check, respond = sampling_routes.check_request, worker.sample_response

    def checking(engine: Engine, request: Any, weights: Any) -> Any:
        if request.topk_prompt_logprobs:
            raise UserError("topk_prompt_logprobs is not supported")
        return check(engine, request, weights)

    def responding(sequences: Any, scores: Any) -> Any:
        if scores is not None and scores.logprobs_T is not None:
            scores = scores._replace(logprobs_T=scores.logprobs_T[1:])
        return respond(sequences, scores)

    patch.setattr(sampling_routes, "check_request", checking)
    patch.setattr(worker, "sample_response", responding)


def twice_the_rate(patch: pytest.MonkeyPatch) -> None:
    step = training.optim_step
    patch.setattr(
        training,
        "optim_step",
        lambda run, params: step(
            run, params.model_copy(update={"learning_rate": 2 * params.learning_rate})
        ),
    )


def no_stop_token(patch: pytest.MonkeyPatch) -> None:
    """Answers lack the token that they were stopped by."""
    result = Row.result

    def without(self: Row) -> Any:
        if self.stop_reason == "stop":
            del self.tokens[-1], self.logprobs[-1]
        return result(self)

    patch.setattr(Row, "result", without)


def one_token_more(patch: pytest.MonkeyPatch) -> None:
    take = Row.take

    def taking(self: Row, choice: Choice, tokenizer: Any) -> None:
        take(self, choice, tokenizer)
        if self.stop_reason == "length" and len(self.tokens) == self.request.max_tokens > 1:
            self.stop_reason = None

    patch.setattr(Row, "take", taking)


def _per_token(summed: Any, inputs: dict[str, Any]) -> Any:
    return summed(inputs) / (inputs["weights"] != 0).sum().clamp(min=1)


def _rows(loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], mean: bool) -> Plant:
    """`loss_of` gets a row's sum of weighted losses and its weights; rows are added, or their mean
    is taken, as engines do that were made for plain rows."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        def loss_sum(loss_fn: str, config: Any, logprobs: Any, inputs: Any, lengths: Any) -> Any:
            weights = inputs["weights"]
            losses_R = [
                loss_of(-(row * own).sum(), own)
                for row, own in zip(logprobs.split(lengths), weights.split(lengths), strict=True)
            ]
            return torch.stack(losses_R).sum() / (len(losses_R) if mean else 1)

        patch.setattr(losses, "loss_sum", loss_sum)

    return plant


def _per_weight(summed: Any, inputs: dict[str, Any]) -> Any:
    return summed(inputs) / inputs["weights"].sum()


def _unweighted(summed: Any, inputs: dict[str, Any]) -> Any:
    return summed({**inputs, "weights": torch.ones_like(inputs["weights"])})


# How engines are known to divide a row's loss, or could. The first is that of SkyRL's JAX backend.
DIVIDED: dict[str, Plant] = {
    "rows by their weights or a floor": _rows(
        lambda loss, weights: loss / weights.sum().clamp(min=1e-9), mean=True
    ),
    "rows by their weights": _rows(lambda loss, weights: loss / weights.sum(), mean=True),
    "rows by their weights' sizes": _rows(
        lambda loss, weights: loss / weights.abs().sum().clamp(min=1e-9), mean=False
    ),
    "rows by their tokens": _rows(
        lambda loss, weights: loss / (weights != 0).sum().clamp(min=1), mean=False
    ),
}
# What is planted, and the one line that says so.
PLANTED: dict[str, tuple[Plant, str]] = {
    "mean loss": (_loss(_per_token), "loss is a plain sum"),
    "alpha 2r": (_scaled(_set_twice_the_rank, lambda rank: 2.0), "alpha is 32 at any rank"),
    "dropped eps": (_adam(eps=1e-12), "eps"),
    "dropped clipping": (_adam(grad_clip_norm=0.0), "clipping"),
    "ignored train flags": (
        _created(lambda shape, seed: (LoraShape(shape.rank, True, True, True), seed)),
        "train flags",
    ),
    "ignored seed": (ignored_seed, "seed"),
    "untempered log-probabilities": (untempered, "tempered log-probabilities"),
    "unrestored optimizer": (unrestored_optimizer, "optimizer comes back"),
    "load_weights at any time": (load_at_any_time, "load_weights first or never"),
}
NEIGHBOURS: dict[str, tuple[Plant, str]] = {
    "any name": (any_name, "the model's name"),
    "dropped betas": (_adam(beta1=0.9, beta2=0.95), "betas"),
    "other beta2": (_adam(beta2=0.999), "betas"),
    "dropped weight decay": (_adam(weight_decay=0.0), "weight decay"),
    "rsLoRA": (
        _scaled(_set_rslora, lambda rank: lora.LORA_ALPHA / math.sqrt(rank)),
        "alpha is 32 at any rank",
    ),
    "one seed for all": (_created(lambda shape, seed: (shape, 0)), "seed"),
    "loss by weight": (_loss(_per_weight), "loss is a plain sum"),
    "weights ignored": (_loss(_unweighted), "loss is a plain sum"),
    "truncation": (truncated, "long rows"),
    "twice the rate": (twice_the_rate, "weight decay"),
    "no stop token": (no_stop_token, "answers end as asked"),
    "one token more": (one_token_more, "answers end as asked"),
    **{name: (plant, "loss is a plain sum") for name, plant in DIVIDED.items()},
}
