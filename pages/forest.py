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
from pages.ticks import Axis, Span, share, span_of, ticks_of

SIDE = 16.0
ROW_HEIGHT = 40
TEXT_HEIGHT = 15  # of a second line of text, where names are too long for one
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
    has_two_lines = not all(_fits_one_line(row) for row in chart.rows)
    height = ROW_HEIGHT + (TEXT_HEIGHT if has_two_lines else 0)
    tops = [TOP + height * number for number in range(len(chart.rows))]
    base = TOP + height * len(tops) + 6
    middles = [top + height - 13 for top in tops]
    drawn = [*_axis(chart.x, span, base, middles)]
    for row, top, middle in zip(chart.rows, tops, middles, strict=True):
        parts = [element("title", {}, f"{row.name}: {row.note}"), *_words(row, top, has_two_lines)]
        drawn.append(element("g", {}, *parts, _interval(row, span, middle)))
    y = base + 54
    for means, is_hollow in ((chart.marked_means, False), (chart.unmarked_means, True)):
        drawn.append(marker(COLOUR, SIDE, y - 4, is_hollow=is_hollow))
        drawn.append(text_at(SIDE + 12, y, fitting(means, WIDTH - SIDE - 20)))
        y += 18
    return picture(y, chart_id, words, drawn)


def _across(span: Span, value: float) -> float:
    return SIDE + (WIDTH - 2 * SIDE) * share("linear", span, value)


def _axis(axis: Axis, span: Span, base: float, middles: Sequence[float]) -> Iterator[Markup]:
    """Marks below, and lines beside the intervals alone: not through the words above them."""
    taken = -1e9
    for tick in ticks_of(axis, span):
        x = _across(span, tick.value)
        yield _upright(x, middles, "grid")
        text = f"+{tick.text}" if tick.value > 0 else tick.text
        half = text_width(text, SMALL_TEXT_SIZE) / 2
        if x - half > taken + 4:
            taken = x + half
            yield text_at(x, base + 16, text, {"text-anchor": "middle", "class": "small"})
    yield _upright(_across(span, 0.0), middles, "level")
    yield line(SIDE, base, WIDTH - SIDE, base, "axis")
    title = fitting(axis.title, WIDTH - 2 * SIDE)
    yield text_at(WIDTH / 2, base + 34, title, {"text-anchor": "middle"})


def _upright(x: float, middles: Sequence[float], style: str) -> Markup:
    way = "".join(f"M{round(x, 2):g},{y - 10:g}v20" for y in middles)
    return element("path", {"d": way, "class": style})


def _fits_one_line(row: ForestRow) -> bool:
    width = text_width(row.name) + text_width(row.note, SMALL_TEXT_SIZE)
    return width + 10 <= WIDTH - 2 * SIDE


def _words(row: ForestRow, top: float, has_two_lines: bool) -> Iterator[Markup]:
    """The name, and the numbers at its right end or below it."""
    width = WIDTH - 2 * SIDE
    yield text_at(SIDE, top + 14, fitting(row.name, width))
    note = fitting(row.note, width, SMALL_TEXT_SIZE)
    if has_two_lines:
        yield text_at(SIDE, top + 14 + TEXT_HEIGHT, note, {"class": "small"})
    else:
        at_end = {"text-anchor": "end", "class": "small"}
        yield text_at(WIDTH - SIDE, top + 14, note, at_end)


def _interval(row: ForestRow, span: Span, y: float) -> Markup:
    parts: list[Markup] = []
    if row.low is not None and row.high is not None:
        low, high = _across(span, row.low), _across(span, row.high)
        parts.append(whiskers_along(COLOUR, y, low, high))
    parts.append(marker(COLOUR, _across(span, row.difference), y, is_hollow=not row.is_marked))
    return joined(*parts)
