"""How much of a long run a page shows: what a screen can tell apart, and what a reader will read.

What is left out is said where it is left out. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pages.charts import Point

T = TypeVar("T")

MOST_POINTS = 240  # of a curve; a chart is about 400 units wide
MOST_MARKERS = 60  # from which they would lie on each other


def thinned(points: Sequence[Point]) -> list[Point]:
    """Of each stretch of a curve its lowest and its highest point, so that no spike is lost."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = stretch(len(points))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {min(part, key=lambda one: one.y), max(part, key=lambda one: one.y)}
        kept += sorted(ends, key=lambda one: one.x)
    if kept[-1].x < points[-1].x:
        kept.append(points[-1])
    return kept


def stretch(num_points: int) -> int:
    """How many points of a curve one stretch of `thinned` has; 1 where all are drawn."""
    return 1 if num_points <= MOST_POINTS else -(-2 * num_points // MOST_POINTS)


def spread(items: Sequence[T], most: int, always: Sequence[T] = ()) -> list[T]:
    """At most about so many items, evenly, the first and the last and those of `always` too."""
    if len(items) <= most:
        return list(items)
    step = (len(items) - 1) / (most - 1)
    chosen = {round(number * step) for number in range(most)}
    return [item for place, item in enumerate(items) if place in chosen or item in always]
