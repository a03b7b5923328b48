"""A chart of points and lines with their intervals, as plain SVG.

Every series has a colour and a marker of its own shape, so that it is told apart without colour.
Numbers are shown as the caller writes them; nothing is computed here but where things lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pages.drawing import (
    LINE_HEIGHT,
    NUM_COLOURS,
    SMALL_TEXT_SIZE,
    TEXT_SIZE,
    WIDTH,
    fitting,
    line,
    marker,
    picture,
    text_at,
    text_width,
    whiskers_up,
)
from pages.markup import Markup, element, joined
from pages.ticks import Axis, Span, Tick, share, span_of, ticks_of

PLOT_HEIGHT = 230
TOP, RIGHT = 10, 16
TITLE_ROOM = 20  # left of the y axis' numbers
DODGE = 7.0  # between points of several series at one place
MAX_DODGE = 24.0


class Point(NamedTuple):
    """One value with its interval, None where that is unknown; `text` says both in words.

    `href` is where in the page it leads, as `#id`; empty for nowhere.
    """

    x: float
    y: float
    low: float | None
    high: float | None
    text: str
    href: str = ""


@dataclass(frozen=True)
class Series:
    """Points that belong together. Series of one name share colour, marker and legend."""

    name: str
    points: Sequence[Point]
    is_joined: bool = True
    has_markers: bool = True  # else the line alone, where markers would lie on each other


class Level(NamedTuple):
    """A value that all points are held against, drawn as a line across."""

    name: str
    y: float


class Begin(NamedTuple):
    """Where something begins along the x axis, drawn as a line upwards with its name."""

    x: float
    name: str


@dataclass(frozen=True)
class LineChart:
    """Series over one x axis; `level` is such as the score of what was not trained, and there may
    be more of them. Charts with the same x axis and `tick_room` (for the y axis' numbers) lie
    exactly below each other.
    """

    x: Axis
    y: Axis
    series: Sequence[Series]
    level: Level | None = None
    is_spread: bool = True  # series stand side by side where they have a point at one place
    more_levels: Sequence[Level] = ()
    begins: Sequence[Begin] = ()
    tick_room: float = 0.0

    @property
    def levels(self) -> list[Level]:
        return [*([] if self.level is None else [self.level]), *self.more_levels]


class _Frame(NamedTuple):
    """Where the plot lies, and what its ends stand for."""

    left: float
    x: Axis
    y: Axis
    x_span: Span
    y_span: Span

    def across(self, value: float) -> float:
        width = WIDTH - RIGHT - self.left
        return self.left + width * share(self.x.scale, self.x_span, value)

    def down(self, value: float) -> float:
        return TOP + PLOT_HEIGHT * (1 - share(self.y.scale, self.y_span, value))


def line_chart(chart: LineChart, chart_id: str, words: tuple[str, str]) -> Markup:
    """Draw a chart. `words` are its title and description, its text alternative.

    An axis is linear where a value is not above 0, of which there is no logarithm.
    """
    points = [point for series in chart.series for point in series.points]
    heights = [y for p in points for y in (p.low, p.y, p.high) if y is not None]
    heights += [level.y for level in chart.levels]
    x_axis = _with_scale(chart.x, [point.x for point in points])
    y_axis = _with_scale(chart.y, heights)
    y_span = span_of(y_axis, heights)
    y_ticks = ticks_of(y_axis, y_span)
    widths = [text_width(tick.text, SMALL_TEXT_SIZE) for tick in y_ticks]
    widest = max([chart.tick_room, *widths])
    frame = _Frame(
        left=TITLE_ROOM + widest + 8,
        x=x_axis,
        y=y_axis,
        x_span=span_of(x_axis, [point.x for point in points]),
        y_span=y_span,
    )
    bottom, x_ticks = _x_axis(frame)
    legend_end, legend = _legend(chart, bottom)
    drawn = [*_y_axis(frame, y_ticks), *x_ticks]
    drawn += _begins(frame, chart.begins)
    for number, level in enumerate(chart.levels):
        y = frame.down(level.y)
        drawn.append(line(frame.left, y, WIDTH - RIGHT, y, f"level l{number}"))
    drawn += [*_series(frame, chart), *legend]
    has_links = any(point.href for point in points)
    return picture(legend_end, chart_id, words, drawn, has_links=has_links)


def _with_scale(axis: Axis, values: Sequence[float]) -> Axis:
    """An axis that says where it is logarithmic, and is not where that cannot be."""
    if axis.scale == "linear":
        return axis
    if all(value > 0 for value in values):
        return replace(axis, title=f"{axis.title} (log axis)")
    return replace(axis, scale="linear")


def _begins(frame: _Frame, begins: Sequence[Begin]) -> Iterator[Markup]:
    """Lines upwards, each with its name where that does not lie on the one before."""
    taken = -1e9
    for begin in begins:
        x = frame.across(begin.x)
        yield line(x, TOP, x, TOP + PLOT_HEIGHT, "begin")
        width = text_width(begin.name, SMALL_TEXT_SIZE)
        if x + 3 > taken and x + 3 + width <= WIDTH:
            taken = x + 3 + width + 4
            yield text_at(x + 3, TOP - 1, begin.name, {"class": "small"})


def _y_axis(frame: _Frame, ticks: Sequence[Tick]) -> Iterator[Markup]:
    for tick in ticks:
        y = frame.down(tick.value)
        yield line(frame.left, y, WIDTH - RIGHT, y, "grid")
        at_end = {"text-anchor": "end", "class": "small"}
        yield text_at(frame.left - 6, y + 4, tick.text, at_end)
    middle = TOP + PLOT_HEIGHT / 2
    turned = {"text-anchor": "middle", "transform": f"rotate(-90 13 {middle:g})"}
    yield text_at(13, middle, fitting(frame.y.title, PLOT_HEIGHT), turned)


def _x_axis(frame: _Frame) -> tuple[float, list[Markup]]:
    """The marks below the plot, those left out that would lie on the one before; where they end."""
    base = TOP + PLOT_HEIGHT
    drawn = [line(frame.left, base, WIDTH - RIGHT, base, "axis")]
    taken, has_second = -1e9, False
    for tick in ticks_of(frame.x, frame.x_span):
        x = frame.across(tick.value)
        half = max(text_width(t, SMALL_TEXT_SIZE) for t in (tick.text, tick.below)) / 2
        drawn.append(line(x, base, x, base + 4, "axis"))
        if x - half < taken + 4:
            continue
        taken = x + half
        middle = {"text-anchor": "middle", "class": "small"}
        shift = min(0.0, WIDTH - 1 - (x + half))  # nothing is cut off at the right end
        drawn.append(text_at(x + shift, base + 16, tick.text, middle))
        if tick.below:
            has_second = True
            drawn.append(text_at(x + shift, base + 30, tick.below, middle))
    y = base + (48 if has_second else 34)
    centre = (frame.left + WIDTH - RIGHT) / 2
    title = fitting(frame.x.title, WIDTH - RIGHT - frame.left)
    drawn.append(text_at(centre, y, title, {"text-anchor": "middle"}))
    return y + 8, drawn


def _numbers(series: Sequence[Series]) -> dict[str, int]:
    """The number of each name, which gives its colour and marker."""
    return {name: number for number, name in enumerate(dict.fromkeys(s.name for s in series))}


def _series(frame: _Frame, chart: LineChart) -> Iterator[Markup]:
    """Of each series its line, then intervals and markers."""
    numbers = _numbers(chart.series)
    step = min(DODGE, MAX_DODGE / max(1, len(numbers) - 1)) if chart.is_spread else 0.0
    for series in chart.series:
        number = numbers[series.name]
        shift = (number - (len(numbers) - 1) / 2) * step
        points = sorted(series.points, key=lambda point: point.x)
        places = [(frame.across(point.x) + shift, frame.down(point.y)) for point in points]
        if series.is_joined and len(places) > 1:
            way = "M" + "L".join(f"{round(x, 2):g},{round(y, 2):g}" for x, y in places)
            yield element("path", {"d": way, "class": f"way c{number % NUM_COLOURS}"})
        marked = zip(points, places, strict=True) if series.has_markers else ()
        for point, (x, y) in marked:
            parts = [element("title", {}, f"{series.name}: {point.text}")]
            if point.low is not None and point.high is not None:
                low, high = frame.down(point.low), frame.down(point.high)
                parts.append(whiskers_up(number, x, low, high))
            parts.append(marker(number, x, y))
            if point.href:
                named = {"href": point.href, "aria-label": f"{series.name}: {point.text}"}
                yield element("a", named, joined(*parts))
            else:
                yield element("g", {}, joined(*parts))


def _legend(chart: LineChart, top: float) -> tuple[float, list[Markup]]:
    """Names beside their markers, in as many lines as they need; where they end."""
    entries: list[tuple[str, Markup]] = []
    for number, level in enumerate(chart.levels):
        entries.append((level.name, line(-7, 0, 7, 0, f"level l{number}")))
    names = _numbers(chart.series)
    if len(names) > 1 or chart.levels:
        unmarked = {series.name for series in chart.series if not series.has_markers}
        for name, number in names.items():
            way = line(-7, 0, 7, 0, f"way c{number % NUM_COLOURS}")
            entries.append((name, way if name in unmarked else marker(number, 0, 0)))
    x, y, drawn = 12.0, top, []
    for number, (name, sign) in enumerate(entries):
        shown = fitting(name, WIDTH - 40)
        width = text_width(shown) + 34
        if number == 0:
            y += LINE_HEIGHT
        elif x + width > WIDTH:
            x, y = 12.0, y + LINE_HEIGHT
        place = {"transform": f"translate({round(x, 2):g},{round(y - TEXT_SIZE / 3, 2):g})"}
        drawn += [element("g", place, sign), text_at(x + 12, y, shown)]
        x += width
    return y + 8, drawn
