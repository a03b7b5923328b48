"""What is trained to see how a service trains: short courses of steps on one row. Pure.

Every course begins with a fresh adapter, whose B matrices are 0, and looks at how far the row's
loss has fallen at its end. All steps but the last have a learning rate of 0: they fill AdamW's
moments and move nothing, so that the gradient is the same g, times a factor, in each. The last step
then moves each weight by the same multiple of its learning rate, which `predicted_move` works out,
and for a small step the loss falls by that multiple of what one plain step makes it fall. So betas,
clipping, sums and saved moments are all seen in one ratio, whatever the model is, and no two
courses need the same initial weights.

What the optimizer remembers shows only where gradients differ, and engines differ in what makes
them differ: there are three ways, and `courses` has what tells which of them a service knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

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
# What makes a gradient another one: the weights of the loss in sign and size, the clipping of its
# norm to next to nothing, or weights of 0 alone.
Way = Literal["weights", "clipping", "weights of 0"]


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
    if m_hat == 0:
        return 0.0  # AdamW's eps, whatever it is, keeps 0/0 away
    return m_hat / (math.sqrt(v_hat) + eps)


def decayed_share(lr: float) -> float:
    """Of each weight, by the step that tells weight decay."""
    return min(DECAYED_SHARE, MAX_WEIGHT_DECAY * lr)


def decayed_move(share: float) -> float:
    """How far a second step moves the loss that decays A and B by a share first, in those of a
    second step that does not: A is less by the share, and B of two steps is."""
    return (1 - share) * (2 - share) / 2


def other_ranks(rank: int) -> tuple[int, ...]:
    """The ranks that tell what alpha does, the one to try first in front: a smaller one where the
    rank is large already. An engine may refuse either."""
    larger, smaller = rank * RANK_FACTOR, rank // RANK_FACTOR
    if rank > MAX_LOW_RANK:
        return smaller, larger
    return (larger, smaller) if smaller else (larger,)


def courses(rank: int, flags: Flags) -> dict[str, Course]:
    """What every check begins with, by what it is for; no course rests on more than it is to tell.
    `rank` and `flags` are the settings' own."""

    def course(*pushes: Push, is_on_first: bool = False) -> Course:
        return Course(pushes, rank, flags, is_on_first=is_on_first)

    still = Push(moves=False)  # fills the moments with the row's gradient
    clipped = Push(moves=False, grad_clip_norm=TINY)
    plain = course(Push())
    return {
        "plain": plain,
        "same seed": plain,
        "other seed": Course(plain.pushes, rank, flags, seed=2),
        "other rank": at_rank(other_ranks(rank)[0], flags),
        "all layers": Course(plain.pushes, rank, Flags()),
        "mlp": Course(plain.pushes, rank, Flags(True, False, False)),
        "attention": Course(plain.pushes, rank, Flags(False, True, False)),
        "unembedding": Course(plain.pushes, rank, Flags(False, False, True)),
        # --- the optimizer
        "huge eps": course(Push(eps=HUGE_EPS)),
        "clipped": course(clipped, clipped, Push()),
        "not decayed": course(Push(), Push()),
        "decayed": course(Push(), Push(decays=True)),
        # --- the loss
        "opposed": course(Push(factor=-1.0, moves=False), Push()),
        "heavy row": course(Push(factor=HEAVY, moves=False), still, Push()),
        "many rows": course(Push(num_rows=HEAVY, moves=False), still, Push()),
        "first": course(Push(shape="first"), is_on_first=True),
        "first and tiny": course(
            Push(shape="first", moves=False),
            Push(shape="first and tiny", moves=False),
            Push(shape="first and tiny"),
            is_on_first=True,
        ),
    }


def at_rank(rank: int, flags: Flags) -> Course:
    """A plain step at another rank."""
    return Course((Push(),), rank, flags)


def nothing_course(rank: int, flags: Flags) -> Course:
    """What tells whether weights of 0 give a gradient of 0."""
    return Course((Push(factor=0.0),), rank, flags)


# --- the ways ------------------------------------------------------------------------------------


class Gradients(NamedTuple):
    """Those of two steps, as multiples of the row's, that tell the first beta, and the second."""

    beta1: tuple[float, float]
    beta2: tuple[float, float]


GRADIENTS: dict[Way, Gradients] = {
    "weights": Gradients((1.0, -1.0), (1.0, 0.1)),
    "clipping": Gradients((1.0, TINY), (TINY, 1.0)),
    "weights of 0": Gradients((1.0, 0.0), (0.0, 1.0)),
}


def push_of(way: Way, gradient: float) -> Push:
    """A push whose gradient is one of a way's."""
    if way == "clipping":
        return Push(grad_clip_norm=TINY) if gradient == TINY else Push()
    return Push(factor=gradient)


def optimizer_courses(rank: int, flags: Flags, way: Way) -> dict[str, Course]:
    """What tells the betas, in one of the ways."""

    def course(gradients: tuple[float, float], *betas: tuple[float, float]) -> Course:
        first, last = (
            replace(push_of(way, one), betas=sent)
            for one, sent in zip(gradients, betas, strict=True)
        )
        return Course((replace(first, moves=False), last), rank, flags)

    beta1, beta2 = GRADIENTS[way]
    return {
        "momentum": course(beta1, BETAS, BETAS),
        "no momentum": course(beta1, BETAS, NO_MOMENTUM),
        "long memory": course(beta2, BETAS, NO_MOMENTUM),
        "short memory": course(beta2, SHORT_MEMORY, SHORT_MEMORY),
    }
