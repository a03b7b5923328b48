"""Markdown and HTML as a reader sees them: the words, without the marks around them."""

from __future__ import annotations

import re
from itertools import pairwise

from grading.latex import BOX, END_OF_BOX

# A line "#### 18" ends a worked solution; a private character stands for the mark.
FINAL = "\ue002"

_TAGS = (
    (re.compile(r"<sup>\s*([-+]?\w+)\s*</sup>", re.IGNORECASE), r"^\1"),
    (re.compile(r"<sub>\s*(\w+)\s*</sub>", re.IGNORECASE), r"\1"),
    (re.compile(r"<answer\s*>", re.IGNORECASE), BOX),
    (re.compile(r"</answer\s*>", re.IGNORECASE), END_OF_BOX),
    (re.compile(r"<(?:br|hr|/?p|/?div|/?li|/?tr)\s*/?>", re.IGNORECASE), "\n"),
    (
        re.compile(r"</?(?:b|i|u|em|strong|code|pre|span|mark|small|ul|ol|td)\s*>", re.IGNORECASE),
        "",
    ),
)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\n`]*$", re.MULTILINE)
_LINK = re.compile(r"!?\[([^\[\]\n]*)\]\((?:https?:|/|#|\.|www\.|mailto:)[^()\s]*\)")
_STRUCK = re.compile(r"~~(?=[^\s~])[^~\n]+~~")
_FINAL_LINE = re.compile(r"^[ \t]*####[ \t]+(?=\S)", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]+", re.MULTILINE)
_QUOTE = re.compile(r"^[ \t]*>[ \t]+", re.MULTILINE)
# A mark of emphasis stands at an edge of what it marks; `10**6` and `snake_case` have none.
_STARS = re.compile(r"(?<![0-9A-Za-z_)*])(\*{1,3})(?=[^\s*])([^*\n]*[^\s*])\1(?!\*)")
_LINES = re.compile(
    r"(?<![0-9A-Za-z_])(_{1,3})(?=[^\s_])([^\n_]*(?:(?<=[^\W_])_(?=[^\W_])[^\n_]*)*)\1(?![0-9A-Za-z_])"
)
_BULLET = re.compile(r"^[ \t]*[*•‣◦▪●][ \t]+(?=\S)", re.MULTILINE)
_DASHES = re.compile(r"^[ \t]*-[ \t]+(?=\S)", re.MULTILINE)
_DASH_BEFORE_WORD = re.compile(r"^[ \t]*-[ \t]+(?=[^\W\d]{2})", re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]*(\d{1,3})[.)][ \t]+(?=\S)", re.MULTILINE)


def without_html(text: str) -> str:
    """The text without the tags that only say how it looks; `<answer>` is a mark."""
    if "<" in text:
        for pattern, replacement in _TAGS:
            text = pattern.sub(replacement, text)
    return text


def without_markdown(text: str) -> str:
    """The text without marks of emphasis, headings, lists, quotations, code and links.

    "- 5" alone is a number, and its dash a sign; a dash marks a list where two lines have one, or
    where a word follows it. Numbers mark a list where one follows upon the other.
    """
    text = _FENCE.sub("", text).replace("`", "")
    text = _STRUCK.sub(" ", _LINK.sub(r"\1", text))
    text = _HEADING.sub("", _FINAL_LINE.sub(FINAL, _QUOTE.sub("", text)))
    for pattern in (_STARS, _STARS, _LINES, _LINES):  # twice, for "**_42_**"
        text = pattern.sub(r"\2", text)
    text = _BULLET.sub("", text)
    text = (_DASHES if len(_DASHES.findall(text)) > 1 else _DASH_BEFORE_WORD).sub("", text)
    numbers = [int(number) for number in _NUMBERED.findall(text)]
    if any(after == before + 1 for before, after in pairwise(numbers)):
        text = _NUMBERED.sub("", text)
    return text
