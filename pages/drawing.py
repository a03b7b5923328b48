"""What charts are drawn with: text that fits, markers of different shapes, intervals.

Colours are classes that the page's style gives, for light and dark; no meaning hangs on them alone.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from pages.markup import Markup, element, joined, printable

WIDTH = 420  # of every chart, in its own units: text stays readable on a phone
TEXT_SIZE = 12
SMALL_TEXT_SIZE = 11
LINE_HEIGHT = 17
NUM_COLOURS = 8
MARKER_RADIUS = 4.5
WHISKER = 3.5  # half of the stroke at the end of an interval

# Around 0,0 in units of the marker's radius; after the last one they come again, hollow.
SHAPES = (
    "M-1,0A1,1,0,1,0,1,0A1,1,0,1,0,-1,0Z",  # circle
    "M-.9,-.9H.9V.9H-.9Z",  # square
    "M0,-1.1L1.1,.9H-1.1Z",  # triangle
    "M0,-1.3L1.1,0L0,1.3L-1.1,0Z",  # diamond
    "M0,1.1L1.1,-.9H-1.1Z",  # triangle downwards
    "M-.4,-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z",  # plus
    "M-.5,-1.1H.5L1.1,0L.5,1.1H-.5L-1.1,0Z",  # hexagon
    "M-1.2,-.6H1.2V.6H-1.2Z",  # bar
)


def text_width(text: str, size: float = TEXT_SIZE) -> float:
    """About how wide a line of text is, on the wide side for usual fonts."""
    return size * sum(_letter_width(letter) for letter in text)


def _letter_width(letter: str) -> float:
    if unicodedata.east_asian_width(letter) in "WF" or letter in "mwMW@%":
        return 1.0
    return 0.74 if letter.isupper() else 0.6


def fitting(text: str, width: float, size: float = TEXT_SIZE) -> str:
    """A line of text, cut to a width."""
    line = " ".join(printable(text).split())
    if text_width(line, size) <= width:
        return line
    line = line[: int(2 * width / size)]  # more letters than can fit, so that few are tried
    while line and text_width(line + "...", size) > width:
        line = line[:-1]
    return line.rstrip() + "..."


def text_at(x: float, y: float, text: str, attributes: Mapping[str, str | float] = {}) -> Markup:
    """A line of text that begins at a place, unless the attributes say otherwise."""
    return element("text", {"x": x, "y": y, **attributes}, text)


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": style})


def marker(number: int, x: float, y: float, *, is_hollow: bool | None = None) -> Markup:
    """The marker of series `number`: its colour and its shape."""
    colour, turn = number % NUM_COLOURS, number // NUM_COLOURS
    hollow = turn % 2 == 1 if is_hollow is None else is_hollow
    place = f"translate({round(x, 2):g},{round(y, 2):g}) scale({MARKER_RADIUS})"
    style = f"marker c{colour}" + (" hollow" if hollow else "")
    return element("path", {"d": SHAPES[colour], "transform": place, "class": style})


def whiskers_up(number: int, x: float, low_y: float, high_y: float) -> Markup:
    """An interval that stands upright."""
    style = f"bar c{number % NUM_COLOURS}"
    return joined(
        line(x, low_y, x, high_y, style),
        line(x - WHISKER, low_y, x + WHISKER, low_y, style),
        line(x - WHISKER, high_y, x + WHISKER, high_y, style),
    )


def whiskers_along(number: int, y: float, low_x: float, high_x: float) -> Markup:
    """An interval that lies."""
    style = f"bar c{number % NUM_COLOURS}"
    return joined(
        line(low_x, y, high_x, y, style),
        line(low_x, y - WHISKER, low_x, y + WHISKER, style),
        line(high_x, y - WHISKER, high_x, y + WHISKER, style),
    )


def picture(
    height: float,
    chart_id: str,
    words: tuple[str, str],
    drawn: Sequence[str],
    *,
    has_links: bool = False,
) -> Markup:
    """A whole drawing with its text alternative: `words` are its title and description.

    To a screen reader a picture has no parts; one with links in it is a group of them.
    """
    names = f"{chart_id}-title", f"{chart_id}-desc"
    return element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH} {round(height, 1):g}",
            "role": "group" if has_links else "img",
            "aria-labelledby": names[0],
            "aria-describedby": names[1],
            "class": "chart",
        },
        element("title", {"id": names[0]}, words[0]),
        element("desc", {"id": names[1]}, words[1]),
        *drawn,
    )
