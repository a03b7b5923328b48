"""Lines as a terminal of some width has them, and times as a person reads them. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

HANGING = "  "  # what a line that goes on is indented by, beyond its first one
MIN_TEXT = 12  # columns that an indent leaves at least


def wrapped(text: str, width: int, command: str | None = None) -> str:
    """A text whose lines are broken at words, and go on with a hanging indent.

    A word that is longer than a line (a path, a URL) stays whole, so that it can be copied, and so
    does what begins with `command`, up to the end of its line: it gets one of its own.
    """
    lines = text.split("\n")
    return "\n".join(piece for line in lines for piece in _pieces(line, width, command))


def _pieces(line: str, width: int, command: str | None) -> Iterator[str]:
    if columns_of(line) <= width:
        yield line
        return
    at = -1 if command is None else line.find(command)
    prose, rest = (line, "") if at < 0 else (line[:at].rstrip(), line[at:])
    indent = line[: len(line) - len(line.lstrip())]
    hanging = indent + HANGING if len(indent + HANGING) + MIN_TEXT <= width else ""
    piece = ""
    for word in re.findall(r"\s*\S+", prose):
        if not piece.strip() or columns_of(piece + word) <= width:
            piece += word
        else:
            yield piece
            piece = hanging + word.lstrip()
    if piece.strip():
        yield piece
    if rest:
        yield hanging + rest


def columns_of(text: str) -> int:
    """Columns that a text takes on a terminal, where wide characters take two and marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def cut(text: str, width: int) -> str:
    """A text as one row of so many columns; what is cut off is told by dots."""
    row = " ".join(text.split("\n"))
    if columns_of(row) <= width:
        return row
    dots = "..."[: max(0, width - 1)]
    row = row[: 4 * width]  # marks take no column, but nobody has so many of them to read
    while row and columns_of(row) + len(dots) > width:
        row = row[:-1]
    return row + dots


def fitted(head: str, details: Sequence[tuple[int, str]], width: int | None) -> str:
    """A row of what it begins with, and as many details as there is room for, in their order.

    Each has its rank: those of the lowest are the last to be left out. Empty ones are none.
    """
    present = [(rank, place, text) for place, (rank, text) in enumerate(details) if text]
    kept: list[tuple[int, str]] = []
    row = head
    for _, place, text in sorted(present):
        tried = sorted([*kept, (place, text)])
        longer = ", ".join([head, *(text for _, text in tried)])
        if width is None or columns_of(longer) <= width:
            kept, row = tried, longer
    return row if width is None else cut(row, width)


def money(dollars: float, places: int = 2) -> str:
    """Dollars to the cent, or finer, and what is less than that not as nothing."""
    dollars += 0.0  # -0.0 is nothing
    if 0 < dollars < 10**-places:
        return f"${dollars:.1g}"
    return f"${dollars:,.{places}f}" if dollars < 1e9 else f"${dollars:.3g}"


def in_vain_text(trained: int, prompt: int, sampled: int) -> str:
    """Tokens that were sent and are recorded nowhere, as a sentence's beginning."""
    return (
        f"paid for in vain: at most {trained:,} trained, {prompt:,} prompt and {sampled:,} sampled "
        "tokens, which were sent and are recorded nowhere"
    )


def seconds_text(seconds: float) -> str:
    """A span of time to two places that count."""
    whole = max(1, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 100 else f"{round(minutes / 60)} h"


def time_left(num_done: int, num_total: int, elapsed_s: float) -> str:
    """How long the rest will take at the pace so far; empty where that is not known, or over."""
    if num_done <= 0 or num_done >= num_total:
        return ""
    return f"~{seconds_text(elapsed_s / num_done * (num_total - num_done))} left"
