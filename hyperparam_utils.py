"""Learning rates, their schedule, LoRA capacity and token arithmetic. Pure.

The one formula of the learning rate, for the global step (from 0) and k missed gates so far:

    lr(step) = max(min_lr, learning_rate * lr_decay**k * warm * cos)
    warm = min(1, (step + 1) / warmup_steps)
    cos = 0.5 * (1 + cos(pi * min(step, max_steps) / max_steps))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from errors import ConfigError

LORA_ALPHA = 32  # for every rank, as the vendor documents
ADAM_BETAS = (0.9, 0.95)
ADAM_EPS = 1e-8
DEFAULT_WARMUP_STEPS = 100
# The cookbook's rule for LoRA on a Llama, of which the rate of other dense models is not far.
USUAL_LR, USUAL_WIDTH, USUAL_EXPONENT = 5e-4, 2000, 0.781
FAR_FACTOR = 10  # times the usual rate: far above what was ever recommended
MAX_SANE_LR = 0.02  # what the rule gives at a width of 18; no model is so narrow


@dataclass(frozen=True)
class Schedule:
    """The numbers of the formula, all resolved; rates are absolute."""

    learning_rate: float
    min_lr: float
    lr_decay: float
    warmup_steps: int
    max_steps: int

    def lr(self, step: int, num_missed_gates: int) -> float:
        """The learning rate of one global step, the first being 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * min(step, self.max_steps) / self.max_steps))
        return max(
            self.min_lr, self.learning_rate * self.lr_decay**num_missed_gates * warm * cosine
        )


class RunSteps(NamedTuple):
    """How many optimizer steps a run takes: so many in each of its rounds, up to a bound."""

    per_round: int
    max_rounds: int
    max_steps: int

    @property
    def total(self) -> int:
        """Steps that the run takes at the most."""
        return min(self.max_steps, self.max_rounds * self.per_round)

    def of_next_round(self, num_taken: int) -> int:
        """Steps of a round that begins after `num_taken` ones."""
        return min(self.per_round, self.max_steps - num_taken)

    def refuse_misfits(self, warmup_steps: int | None, held_out_every: int | None) -> None:
        """Raise `ValueError` for a warm-up longer than a third of the run, and for held-out losses
        that would be measured less often than once a run."""
        if warmup_steps is not None and warmup_steps * 3 > self.total:
            raise ValueError(
                f"warmup_steps {warmup_steps} is more than a third of the {self.total} steps that "
                f"this run takes at most (min(max_steps {self.max_steps}, max_rounds "
                f"{self.max_rounds} x steps_per_round {self.per_round})). Set it to "
                f"{self.total // 3} or less, or to null."
            )
        if held_out_every is not None and held_out_every >= self.total:
            raise ValueError(
                f"evaluation.held_out_every_steps is {held_out_every}, but the run takes at most "
                f"{self.total} steps, so nothing would be measured inside a round. Lower it, "
                "or leave it out: held-out losses are measured after each round anyway."
            )


def steps_for_epochs(num_epochs: float, num_rows: int, batch_size: int, max_rounds: int) -> int:
    """Steps of a round so that all rounds make at least `num_epochs` passes through the rows."""
    # As a fraction of what was typed: 0.7 * 30 / 3 is a hair above 7 in floats.
    num_examples = Fraction(repr(num_epochs)) * num_rows
    return max(1, math.ceil(num_examples / (batch_size * max_rounds)))


def resolve_warmup_steps(explicit: int | None, total_steps: int) -> int:
    """`warmup_steps`, where null means 100 but at most a tenth of the run's steps."""
    return min(DEFAULT_WARMUP_STEPS, total_steps // 10) if explicit is None else explicit


def recommended_lr(base_model: str) -> float:
    """The cookbook's learning rate for LoRA on a hub model.

    Raises `ConfigError` where the cookbook has none: families it has not calibrated, and models it
    does not know.
    """
    from tinker_cookbook.exceptions import ConfigurationError
    from tinker_cookbook.hyperparam_utils import get_lr

    try:
        return float(get_lr(base_model, is_lora=True))
    except (NotImplementedError, ConfigurationError, KeyError, ValueError, OSError) as error:
        raise ConfigError(
            f"use_recommended_lr: the cookbook has no recommended learning rate for {base_model!r} "
            f"({type(error).__name__}). Set learning_rate to a number, and leave "
            "use_recommended_lr out."
        ) from None


def lr_warning(highest_lr: float, hidden_size: int | None) -> str | None:
    """A warning of a learning rate that is likely to break the weights; None of any other.

    `hidden_size` is the model's width, where it is known here.
    """
    usual = None
    if hidden_size is not None and hidden_size > 0:
        usual = USUAL_LR * (USUAL_WIDTH / hidden_size) ** USUAL_EXPONENT
    bound = MAX_SANE_LR if usual is None else min(MAX_SANE_LR, FAR_FACTOR * usual)
    if highest_lr <= bound:
        return None
    known = "" if usual is None else f"; about {usual:.1g} is usual for a model of this width"
    return (
        f"warning: the learning rate {highest_lr:g} is far above what LoRA is trained with{known}. "
        f"Above {bound:.2g} the weights often break in a few steps: lower learning_rate, for "
        f"example with --set learning_rate={min(usual or 1e-3, MAX_SANE_LR):.1g}."
    )


def lora_param_count(
    model_config: Mapping[str, Any],
    rank: int,
    *,
    train_attn: bool,
    train_mlp: bool,
    train_unembed: bool,
) -> int | None:
    """Trainable LoRA parameters of a dense decoder described by its Hugging Face `config.json`.

    Each adapted matrix of shape (out, in) adds rank * (in + out). None where the config lacks the
    sizes or describes another kind of model (mixture of experts, fused layers).
    """
    try:
        hidden, layers = model_config["hidden_size"], model_config["num_hidden_layers"]
        ffn, vocab = model_config["intermediate_size"], model_config["vocab_size"]
        heads = model_config["num_attention_heads"]
    except KeyError:
        return None
    if any("expert" in key for key in model_config):
        return None
    head_dim = model_config.get("head_dim") or hidden // heads
    kv_heads = model_config.get("num_key_value_heads") or heads
    attention = 2 * (hidden + heads * head_dim) + 2 * (
        hidden + kv_heads * head_dim
    )  # q, o and k, v
    mlp = 3 * (hidden + ffn)  # gate, up, down
    per_rank = (
        layers * (attention * train_attn + mlp * train_mlp) + (hidden + vocab) * train_unembed
    )
    return rank * per_rank


def known_lora_param_count(
    base_model: str, rank: int, *, train_attn: bool, train_mlp: bool, train_unembed: bool
) -> int | None:
    """The same for a hub model, from the cookbook's table; None for a model that is not in it."""
    from tinker_cookbook.exceptions import ConfigurationError
    from tinker_cookbook.hyperparam_utils import get_lora_param_count

    try:
        return int(
            get_lora_param_count(
                base_model,
                rank,
                train_mlp=train_mlp,
                train_attn=train_attn,
                train_unembed=train_unembed,
            )
        )
    except (ConfigurationError, KeyError, ValueError, OSError):
        return None


def capacity_sentence(num_lora_params: int | None, num_loss_tokens: int, rank: int) -> str:
    """Say whether the adapter has room for what the data holds.

    The vendor's rule of thumb for supervised data: LoRA matches full fine-tuning while it has at
    least as many parameters as the data has tokens that are trained on.
    """
    if num_lora_params is None:
        return (
            f"LoRA rank {rank}: the parameter count of this model is not known here; "
            f"{num_loss_tokens:,} loss tokens"
        )
    verdict = (
        "room for all of them"
        if num_lora_params >= num_loss_tokens
        else "raise lora_rank or narrow the data"
    )
    relation = ">=" if num_lora_params >= num_loss_tokens else "<"
    return (
        f"LoRA rank {rank}: {num_lora_params:,} parameters {relation} "
        f"{num_loss_tokens:,} loss tokens ({verdict})"
    )
