"""Axes: where a value lies on one, and at which values it is marked. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

Scale = Literal["linear", "log2", "log10"]
MOST_TICKS = 6


class Span(NamedTuple):
    """Both ends of an axis; `low` is below `high`, and above 0 on a logarithmic one."""

    low: float
    high: float


class Tick(NamedTuple):
    """A marked value with what is written at it; `below` is a second line, such as a rank."""

    value: float
    text: str
    below: str = ""


@dataclass(frozen=True)
class Axis:
    """What an axis says: its title with the unit, its scale, and the values that are marked.

    Without `ticks` round values are marked. Values lie within `limits` where those are given.
    """

    title: str
    scale: Scale = "linear"
    ticks: tuple[Tick, ...] | None = None
    limits: Span | None = None


def span_of(axis: Axis, values: list[float]) -> Span:
    """The ends of an axis that shows these values, with some room at both."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if axis.scale != "linear":
        room = max(1.15, (high / low) ** 0.06)
        return Span(low / room, high * room)
    room = (high - low) * 0.06
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value
        room = max(abs(low) * 0.1, 0.05)
    limits = axis.limits or Span(-math.inf, math.inf)
    return Span(
        max(low - room, min(limits.low, low)),
        min(high + room, max(limits.high, high)),
    )


def share(scale: Scale, span: Span, value: float) -> float:
    """How far along an axis a value lies, from 0 to 1."""
    if scale == "linear":
        return (value - span.low) / (span.high - span.low)
    return math.log(value / span.low) / math.log(span.high / span.low)


def ticks_of(axis: Axis, span: Span) -> list[Tick]:
    """What is marked on an axis, in rising order."""
    if axis.ticks is not None:
        inside = [tick for tick in axis.ticks if span.low <= tick.value <= span.high]
        return sorted(inside, key=lambda tick: tick.value)
    if axis.scale == "linear":
        values = _round_values(span)
    else:
        values = _round_powers(span, 2 if axis.scale == "log2" else 10)
        if len(values) < 2:  # less than a power lies between both ends
            values = _round_values(span)
    return [Tick(value, number_text(value)) for value in values]


def _round_values(span: Span) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, at most `MOST_TICKS` of them."""
    rough = (span.high - span.low) / (MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * one for one in (1, 2, 5, 10) if power * one >= rough * 0.999)
    first, last = math.ceil(span.low / step - 1e-9), math.floor(span.high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _round_powers(span: Span, base: int) -> list[float]:
    """Powers of the base, with 2 and 5 times them where a power of ten leaves room for it."""
    low = math.floor(math.log(span.low, base))
    powers = range(low, math.ceil(math.log(span.high, base)) + 1)
    for parts in ((1, 2, 5), (1,)) if base == 10 else ((1,),):
        found = [float(f"{part * float(base) ** p:.12g}") for p in powers for part in parts]
        found = [value for value in found if span.low <= value <= span.high]
        if len(found) <= MOST_TICKS:
            return found
    return found[:: math.ceil(len(found) / MOST_TICKS)]


def number_text(value: float) -> str:
    """A number as an axis has room for it: 0.25, 3e-5, 41.5k, 1.2M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit and (unit > 1e3 or abs(value) >= 1e4):
            return f"{float(f'{value / unit:.3g}'):g}{name}"
    mantissa, _, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
