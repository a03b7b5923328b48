"""What a check says of a service, line by line, and how a measured number becomes a verdict. Pure.

A verdict compares what was measured with what a service gives that keeps its promise, and with what
one gives that breaks it in a known way. These stand far apart by construction, so that neither the
rounding of bfloat16 nor the curvature of a loss decides between them; what lies near none of them
differs too, in a way that has no name here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Verdict = Literal["works", "differs", "cannot tell"]
NEAR_FRAC = 0.35  # of the way from what is promised to the nearest of what is not


@dataclass(frozen=True)
class Line:
    """One thing that was tried. `affects` says what of the loop depends on it, and
    `changes_scores` whether a difference does so without a word: where a run says that it is
    refused something, it does not, unless there would be no score at all."""

    name: str
    verdict: Verdict
    found: str
    affects: str
    changes_scores: bool = True

    @property
    def is_bad(self) -> bool:
        """Whether runs on this service have other scores than on Tinker, or none."""
        return self.verdict == "differs" and self.changes_scores


class Found(NamedTuple):
    """What became of one measurement, with the reason."""

    verdict: Verdict
    why: str


def nearest(
    measured: float, promised: float, broken: Mapping[str, float], noise: float = 0.0
) -> Found:
    """Judge one number: `promised` is what a service that works gives, `broken` what others give,
    each under what it does then; `noise` is how far the number is off by chance."""
    if not math.isfinite(measured):
        return Found("differs", f"measured {measured}, which is no number")
    shown = f"{_plain(measured)} where {_plain(promised)} is promised"
    gap = min(abs(value - promised) for value in broken.values())
    if abs(measured - promised) <= NEAR_FRAC * gap:
        return Found("works", shown)
    if abs(measured - promised) <= NEAR_FRAC * gap + noise:
        return Found("cannot tell", f"{shown}, and the same weights differ by {noise:.2f}")
    how, value = min(broken.items(), key=lambda one: abs(one[1] - measured))
    if abs(measured - value) <= NEAR_FRAC * abs(value - promised):
        return Found("differs", f"{how}: {shown}")
    return Found("differs", f"neither as promised nor as if {how}: {shown}")


def worst(found: Mapping[str, Found]) -> Found:
    """One verdict of several, by their names: what differs, else what cannot be told, else all."""
    for verdict in ("differs", "cannot tell"):
        bad = {name: one.why for name, one in found.items() if one.verdict == verdict}
        if len(bad) > 1 and len(set(bad.values())) == 1:  # said once
            return Found(verdict, next(iter(bad.values())))
        if bad:
            return Found(verdict, "; ".join(f"{name}: {why}" for name, why in bad.items()))
    return Found("works", "; ".join(f"{name} {one.why}" for name, one in found.items()))


def _plain(number: float) -> str:
    """With two decimals, and no sign before a zero."""
    return f"{round(number, 2) + 0.0:.2f}"
