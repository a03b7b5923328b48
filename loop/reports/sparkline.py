"""A course of numbers in one line: as blocks, or as five figures where those cannot be shown. Pure.

Blocks show a shape, from the lowest number to the highest; the figures beside it say how much.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"  # an eighth of a row, to the whole
NO_NUMBER = "?"
NUM_FIGURES = 5
LEFT_AT_LEAST = 4  # columns of a shape


def sparkline(values: Sequence[float], columns: int) -> str:
    """As many blocks as there are values, or `columns` of them, each the mean of its neighbours.

    What is no finite number is shown as a question mark.
    """
    shown = _in_groups(values, max(1, columns))
    finite = [value for value in shown if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return "".join(_block(value, low, high) for value in shown)


def course_text(values: Sequence[float], columns: int | None) -> str:
    """The course and its ends, its shape no wider than `columns`; None where blocks cannot be
    shown, for five figures."""
    if len(values) < 2 or columns is None or columns < LEFT_AT_LEAST:
        return " ".join(figure(value) for value in five_of(values))
    ends = f"{figure(values[0])} -> {figure(values[-1])}"
    return f"{sparkline(values, columns)} {ends}"


def ends_text(values: Sequence[float]) -> str:
    """The first and the last, once where they read the same; empty where there are none."""
    ends = [figure(values[0]), figure(values[-1])] if values else []
    return " -> ".join(dict.fromkeys(ends))


def five_of(values: Sequence[float]) -> list[float]:
    """The first, the last, and those at a quarter, a half and three quarters of the way."""
    last = len(values) - 1
    places = {round(last * part / (NUM_FIGURES - 1)) for part in range(NUM_FIGURES)}
    return [values[place] for place in sorted(places)] if values else []


def figure(value: float) -> str:
    """A number to four places that count."""
    return f"{value:.4g}"


def _in_groups(values: Sequence[float], columns: int) -> list[float]:
    if len(values) <= columns:
        return list(values)
    bounds = [len(values) * place // columns for place in range(columns + 1)]
    groups = [values[start:end] for start, end in itertools.pairwise(bounds)]
    return [_mean(group) for group in groups]


def _mean(values: Sequence[float]) -> float:
    if not all(map(math.isfinite, values)):
        return math.nan
    return sum(value / len(values) for value in values)  # huge ones do not add up to infinity


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return NO_NUMBER
    # Halved, or the difference of two huge numbers is infinite.
    span = high / 2 - low / 2
    share = (value / 2 - low / 2) / span if span else 0.0
    return BLOCKS[min(len(BLOCKS) - 1, int(share * len(BLOCKS)))]
