"""Elements of HTML and SVG. Everything that is written into a page is escaped here, and only here.

Text comes from anywhere: names of trials, questions, answers. What cannot be printed (control
characters, marks that turn the direction of writing, halves of a character) becomes a space.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

VOID = frozenset(("meta", "br", "wbr"))  # HTML's elements without an end


# Hebrew, Arabic and their kind: words that are written from right to left.
_LEFTWARDS = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\U00010800-\U00010fff\U0001e800-\U0001efff"
_LEFTWARD_WORDS = re.compile(f"[{_LEFTWARDS}]+(?: +[{_LEFTWARDS}]+)*")


class Markup(str):
    """Text that is markup already; whatever else is put into an element is escaped."""


def printable(text: str) -> str:
    """A text of one line or several of which every character can be shown."""
    if text.isprintable():  # as nearly every one is
        return text
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def isolated(text: str) -> str:
    """A text in which words from right to left leave the order of what stands around them alone.

    Without the two marks numbers that follow a Hebrew name are shown in the opposite order.
    """
    return text if text.isascii() else _LEFTWARD_WORDS.sub("\u2068\\g<0>\u2069", text)


def escaped(text: str) -> Markup:
    """Text as it stands in an element or between the quotes of an attribute."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(isolated(printable(text)), quote=True))


def element(name: str, attributes: Mapping[str, str | float], *children: str) -> Markup:
    """An element with its attributes and what is in it, in this order."""
    written = "".join(f' {key}="{escaped(_value(one))}"' for key, one in attributes.items())
    if name in VOID:
        assert not children, f"{name} holds nothing"
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{joined(*children)}</{name}>")


def joined(*children: str, by: str = "") -> Markup:
    return Markup(by.join(escaped(child) for child in children))


def _value(value: str | float) -> str:
    """Coordinates to a hundredth of a unit: finer ones only make a page larger."""
    return value if isinstance(value, str) else f"{round(value, 2):g}"
