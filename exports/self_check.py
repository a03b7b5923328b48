"""An export held against the service: tokens, prompts, log-probabilities and greedy answers."""

from __future__ import annotations

from typing import NamedTuple

from exports.check import Check
from exports.loaded import Loaded
from exports.reference import Reference


class Noise(NamedTuple):
    """How far rounding alone moves log-probabilities of the same weights, and how it was seen."""

    mean: float
    largest: float
    how: str


def check(loaded: Loaded, reference: Reference, noise: Noise | None = None) -> list[Check]:
    """Compare an export with the service. `noise` is None for one that is not rounded (float32);
    else what `loaded_transformers.rounding_noise` measured."""
    raise NotImplementedError
