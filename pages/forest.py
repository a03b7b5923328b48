"""Differences with their intervals around zero, one below the other, as plain SVG.

The name of each stands above its interval, so that long ones have room on a phone as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pages.drawing import (
    SMALL_TEXT_SIZE,
    WIDTH,
    fitting,
    line,
    marker,
    picture,
    text_at,
    text_width,
    whiskers_along,
)
from pages.markup import Markup, element, joined
from pages.ticks import Axis, Span, Tick, share, span_of, ticks_of

SIDE = 16.0
ROW_HEIGHT = 40
TOP = 8
COLOUR = 1  # of all of them; filled or hollow says which is marked


class ForestRow(NamedTuple):
    """One difference; the interval is None where it is unknown. `note` is shown beside the name."""

    name: str
    difference: float
    low: float | None
    high: float | None
    note: str
    is_marked: bool


@dataclass(frozen=True)
class ForestChart:
    """Differences on one axis. Marked ones are filled, and `legend` says both in words."""

    x: Axis
    rows: Sequence[ForestRow]
    marked_means: str
    unmarked_means: str


def forest_chart(chart: ForestChart, chart_id: str, words: tuple[str, str]) -> Markup:
    """Draw a chart. `words` are its title and description, its text alternative."""
    ends = [x for r in chart.rows for x in (r.low, r.difference, r.high) if x is not None]
    span = span_of(chart.x, [0.0, *ends])
    base = TOP + ROW_HEIGHT * len(chart.rows) + 6
    drawn = [*_axis(chart.x, span, base)]
    for number, row in enumerate(chart.rows):
        drawn.append(_row(row, span, TOP + ROW_HEIGHT * number))
    y = base + 54
    for means, is_hollow in ((chart.marked_means, False), (chart.unmarked_means, True)):
        drawn.append(marker(COLOUR, SIDE, y - 4, is_hollow=is_hollow))
        drawn.append(text_at(SIDE + 12, y, fitting(means, WIDTH - SIDE - 20)))
        y += 18
    return picture(y, chart_id, words, drawn)


def _across(span: Span, value: float) -> float:
    return SIDE + (WIDTH - 2 * SIDE) * share("linear", span, value)


def _axis(axis: Axis, span: Span, base: float) -> Iterator[Markup]:
    middle = {"text-anchor": "middle", "class": "small"}
    taken = -1e9
    for tick in ticks_of(axis, span):
        x = _across(span, tick.value)
        yield line(x, TOP, x, base, "grid")
        text = _signed(tick)
        half = text_width(text, SMALL_TEXT_SIZE) / 2
        if x - half > taken + 4:
            taken = x + half
            yield text_at(x, base + 16, text, middle)
    zero = _across(span, 0.0)
    yield line(zero, TOP, zero, base, "level")
    yield line(SIDE, base, WIDTH - SIDE, base, "axis")
    title = fitting(axis.title, WIDTH - 2 * SIDE)
    yield text_at(WIDTH / 2, base + 34, title, {"text-anchor": "middle"})


def _signed(tick: Tick) -> str:
    return f"+{tick.text}" if tick.value > 0 else tick.text


def _row(row: ForestRow, span: Span, top: float) -> Markup:
    note = fitting(row.note, WIDTH * 0.7, SMALL_TEXT_SIZE)
    room = WIDTH - 2 * SIDE - text_width(note, SMALL_TEXT_SIZE) - 8
    y = top + 27
    parts = [
        element("title", {}, f"{row.name}: {row.note}"),
        text_at(SIDE, top + 14, fitting(row.name, room), {"class": "halo"}),
        text_at(WIDTH - SIDE, top + 14, note, {"text-anchor": "end", "class": "small halo"}),
    ]
    if row.low is not None and row.high is not None:
        parts.append(whiskers_along(COLOUR, y, _across(span, row.low), _across(span, row.high)))
    parts.append(marker(COLOUR, _across(span, row.difference), y, is_hollow=not row.is_marked))
    return element("g", {}, joined(*parts))
