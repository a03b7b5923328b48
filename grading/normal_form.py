"""One form of a text before any grader reads it: the same words in other dress are the same words.

Signs that look alike become one sign, and what only says how the text is to look (LaTeX, Markdown,
HTML) is taken off. What carries meaning stays apart: a superscript is an exponent and no digit.
"""

# ruff: noqa: RUF001 - signs that look alike are what is told apart here
from __future__ import annotations

import html
import re
import unicodedata

from grading.latex import BOX, END_OF_BOX, without_latex
from grading.markdown import FINAL, without_html, without_markdown

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]\w{1,30});")
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎", "0123456789+-()", strict=True))
_SLASHES = "⁄∕/"
_SMALL_FRACTION = re.compile(rf"(?<![⁰¹²³⁴⁵⁶⁷⁸⁹])([⁰¹²³⁴⁵⁶⁷⁸⁹]++)[{_SLASHES}]([₀₁₂₃₄₅₆₇₈₉]+)")
_RAISED_RUN = re.compile(f"[{''.join(_RAISED)}]+")
_LOWERED_RUN = re.compile(f"[{''.join(_LOWERED)}]+")
_HYPHENS = "‐‑‒–−➖˗﹘﹣－⁃"
_LONG_DASHES = "—―⸺⸻"
_TABLE = {
    **{ord(char): "-" for char in _HYPHENS},
    **{ord(char): "—" for char in _LONG_DASHES},
    **dict.fromkeys(map(ord, "‘’‚‛′ʼʹˈ＇"), "'"),
    **dict.fromkeys(map(ord, "“”„‟″〃＂«»"), '"'),
    **dict.fromkeys(map(ord, "٫"), "."),
    **dict.fromkeys(map(ord, "٬"), ","),
    **dict.fromkeys(map(ord, "⁄∕"), "/"),
    **dict.fromkeys(map(ord, "⋅∙・"), "·"),
    **dict.fromkeys(map(ord, "✕✖⨯"), "×"),
    ord("٪"): "%",
    ord("\u20e3"): "",  # the frame of a keycap
    ord("\u034f"): "",
    **{ord(mark): " " for mark in (BOX, END_OF_BOX, FINAL)},
}
_OTHER = re.compile(r"[^\x00-\x7f]")
# No letter has more accents than this, and to put more of them in order takes their number squared.
MAX_ACCENTS = 30
_ACCENTS = re.compile(rf"[^\w\s\x00-\x7f]{{{MAX_ACCENTS + 1},}}")
# A long dash beside a number alone is its sign; between words, or with spaces, it is a pause.
_SIGN = re.compile(r"(?<![\w)\]%—])—(?=\.?\d|[$€£¥₹]\s?\.?\d)")
_PAUSE = re.compile(r"[ \t]{0,3}(?:—+|(?<![-|:])--(?![-|:]))[ \t]{0,3}")


def marked_form(text: str) -> str:
    """The normal form with its lines and its letters' case, and with the marks of answers in it."""
    text = unicodedata.normalize("NFKC", _with_plain_signs(text))
    text = _OTHER.sub(_digit, text)
    text = _PAUSE.sub(" — ", _SIGN.sub("-", text))
    return without_markdown(without_latex(without_html(text)))


def without_marks(text: str) -> str:
    for mark in (BOX, END_OF_BOX, FINAL):
        text = text.replace(mark, " ")
    return text


def readable_form(text: str) -> str:
    """The normal form with its lines and its letters' case."""
    return without_marks(marked_form(text))


def folded(text: str) -> str:
    """A text without its letters' case and its spaces' number."""
    return " ".join(unicodedata.normalize("NFKC", text.casefold()).split())


def _with_plain_signs(text: str) -> str:
    """What compatibility forms would lose is written out before them."""
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    if text.isascii():
        return text
    text = _ACCENTS.sub(_few_accents, text)
    text = _OTHER.sub(_compatible, text)
    text = _SMALL_FRACTION.sub(_small_fraction, text)
    text = _RAISED_RUN.sub(lambda match: "^" + "".join(_RAISED[c] for c in match[0]), text)
    text = _LOWERED_RUN.sub(_subscript, text)
    return text.translate(_TABLE)


def _few_accents(match: re.Match[str]) -> str:
    kept: list[str] = []
    num_accents = 0
    for char in match[0]:
        num_accents = num_accents + 1 if unicodedata.combining(char) else 0
        if num_accents <= MAX_ACCENTS:
            kept.append(char)
    return "".join(kept)


def _compatible(match: re.Match[str]) -> str:
    """One character beyond ASCII: invisible ones go, and fractions and squares are written out."""
    char = match[0]
    if unicodedata.category(char) == "Cf" or "\ufe00" <= char <= "\ufe0f":
        return ""
    if char == "，":
        near = match.string[max(0, match.start() - 1) : match.end() + 1]
        is_wide = [char.isdecimal() and not char.isascii() for char in near]
        return "," if is_wide == [True, False, True] else ", "
    kind, _, parts = unicodedata.decomposition(char).partition(" ")
    if kind == "<fraction>":
        written = "".join(chr(int(part, 16)) for part in parts.split())
        is_mixed = match.start() > 0 and match.string[match.start() - 1].isdecimal()
        return f" {written}" if is_mixed else written
    if kind == "<square>":
        return "".join(chr(int(part, 16)) for part in parts.split())
    return char


def _small_fraction(match: re.Match[str]) -> str:
    above = "".join(_RAISED[char] for char in match[1])
    below = "".join(_LOWERED[char] for char in match[2])
    is_mixed = match.start() > 0 and match.string[match.start() - 1].isdecimal()
    return f"{' ' if is_mixed else ''}{above}/{below}"


def _subscript(match: re.Match[str]) -> str:
    """Beside a letter as CO₂ has it; after a digit it is the base, and no digit of the number."""
    is_base = match.start() > 0 and match.string[match.start() - 1].isdecimal()
    return ("_" if is_base else "") + "".join(_LOWERED[char] for char in match[0])


def _digit(match: re.Match[str]) -> str:
    """A digit of any script."""
    value = unicodedata.decimal(match[0], None)
    return match[0] if value is None else str(value)
