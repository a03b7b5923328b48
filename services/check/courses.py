"""What is trained to see how a service trains: short courses of steps on one row. Pure.

Every course begins with a fresh adapter, whose B matrices are 0, and looks at how far the row's
loss has fallen at its end. All steps but the last have a learning rate of 0: they fill AdamW's
moments and move nothing, so that the gradient is the same g, times a factor, in each. The last step
then moves each weight by the same multiple of its learning rate, which `predicted_move` works out,
and for a small step the loss falls by that multiple of what one plain step makes it fall. So betas,
clipping, sums and saved moments are all seen in one ratio, whatever the model is, and no two
courses need the same initial weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

BETAS = (0.9, 0.95)
NO_MOMENTUM = (0.0, 0.95)
SHORT_MEMORY = (0.0, 0.01)
TINY = 1e-6  # a gradient, beside another, or a norm that any gradient is clipped to
HUGE_EPS = 1e4  # beside any gradient
RANK_FACTOR = 4  # between the two ranks that tell what alpha does
MAX_LOW_RANK = 16
HEAVY = 10  # times a row's weight, or rows of a batch: they tell a sum from a mean
DECAYED_SHARE = 0.5  # of each weight, by the step that tells weight decay
MAX_WEIGHT_DECAY = 1e4  # that is sent

# Which targets of the row carry loss: all, the first, or the first and all others a little.
Shape = Literal["whole", "first", "first and tiny"]


@dataclass(frozen=True)
class Push:
    """One forward_backward and the optimizer step after it.

    `factor` multiplies the weights of the row's targets, and the row is sent `num_rows` times;
    `moves` says whether the step has the course's learning rate, or 0. `decays` says whether
    it has a weight decay.
    """

    factor: float = 1.0
    num_rows: int = 1
    shape: Shape = "whole"
    moves: bool = True
    betas: tuple[float, float] = BETAS
    eps: float = 1e-12
    grad_clip_norm: float = 0.0
    decays: bool = False


@dataclass(frozen=True)
class Flags:
    """Which layers an adapter covers."""

    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True


@dataclass(frozen=True)
class Course:
    """A fresh adapter, and what it is trained by. `is_on_first`: its move is that of the loss of
    the first target alone."""

    pushes: tuple[Push, ...]
    rank: int
    flags: Flags
    seed: int = 1
    is_on_first: bool = False

    @property
    def num_trained_rows(self) -> int:
        return sum(push.num_rows for push in self.pushes)


def predicted_move(
    gradients: Sequence[float], betas: tuple[float, float] = BETAS, eps: float = 0.0
) -> float:
    """How far AdamW's last step moves a weight, in learning rates, after gradients that are these
    multiples of one.

    >>> predicted_move([1.0])
    1.0
    """
    beta1, beta2 = betas
    m = v = 0.0
    for gradient in gradients:
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
    m_hat, v_hat = m / (1 - beta1 ** len(gradients)), v / (1 - beta2 ** len(gradients))
    return m_hat / (math.sqrt(v_hat) + eps)


def decayed_share(lr: float) -> float:
    """Of each weight, by the step that tells weight decay."""
    return min(DECAYED_SHARE, MAX_WEIGHT_DECAY * lr)


def other_rank(rank: int) -> int:
    """The second rank: a smaller one where the first is large already."""
    return rank * RANK_FACTOR if rank <= MAX_LOW_RANK else rank // RANK_FACTOR


def courses(rank: int, flags: Flags) -> dict[str, Course]:
    """All courses of a check, by what they are for. `rank` and `flags` are the settings' own."""

    def course(*pushes: Push, is_on_first: bool = False) -> Course:
        return Course(pushes, rank, flags, is_on_first=is_on_first)

    still = Push(moves=False)  # fills the moments with the row's gradient
    plain = course(Push())
    return {
        "plain": plain,
        "same seed": plain,
        "other seed": Course(plain.pushes, rank, flags, seed=2),
        "other rank": Course(plain.pushes, other_rank(rank), flags),
        "all layers": Course(plain.pushes, rank, Flags()),
        "mlp": Course(plain.pushes, rank, Flags(True, False, False)),
        "attention": Course(plain.pushes, rank, Flags(False, True, False)),
        "unembedding": Course(plain.pushes, rank, Flags(False, False, True)),
        # --- the optimizer
        "momentum": course(still, Push(factor=-1.0)),
        "no momentum": course(still, Push(factor=-1.0, betas=NO_MOMENTUM)),
        "long memory": course(still, Push(factor=0.1, betas=NO_MOMENTUM)),
        "short memory": course(
            Push(moves=False, betas=SHORT_MEMORY), Push(factor=0.1, betas=SHORT_MEMORY)
        ),
        "huge eps": course(Push(eps=HUGE_EPS)),
        "clipped": course(Push(moves=False, grad_clip_norm=TINY), Push(factor=-1.0)),
        "not decayed": course(Push(), Push(factor=TINY, betas=NO_MOMENTUM)),
        "decayed": course(Push(), Push(factor=TINY, betas=NO_MOMENTUM, decays=True)),
        # --- the loss
        "negative": course(Push(factor=-1.0)),
        "heavy row": course(Push(factor=-HEAVY, moves=False), Push()),
        "many rows": course(Push(factor=-1.0, num_rows=HEAVY, moves=False), Push()),
        "first": course(Push(shape="first"), is_on_first=True),
        "first and tiny": course(
            Push(factor=-1.0, shape="first", moves=False),
            Push(shape="first and tiny"),
            is_on_first=True,
        ),
    }
