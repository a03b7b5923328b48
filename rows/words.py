"""Texts as words, for comparing what is asked: case, marks and small words aside."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection

MAX_SHOWN = 400  # characters of a text in a finding

OPERATORS = frozenset("+-*/=<>^%×÷")  # noqa: RUF001 (the multiplication sign is meant)

Words = tuple[str, ...]


class _Characters(dict[int, str]):
    """What becomes of each character: letters, digits, their marks and `others` stay."""

    def __init__(self, others: Collection[str]) -> None:
        super().__init__()
        self._others = others

    def __missing__(self, code: int) -> str:
        character = "-" if code == 0x2212 else chr(code)  # the minus sign
        if unicodedata.category(character) == "Cf":  # invisible, as a soft hyphen is
            self[code] = ""
            return ""
        is_word = character.isalnum() or unicodedata.category(character).startswith("M")
        kept = is_word or character in self._others
        self[code] = character if kept else " "
        return self[code]


_MARKS = OPERATORS | frozenset(".,:")
_CHARACTERS, _NO_MARKS = _Characters(_MARKS), _Characters(())


def normalise(text: str) -> str:
    """Reduce a text to what identifies a question: words, and marks that have meaning in numbers.

    NFKC, case folded, punctuation and repeated spaces removed; digits stay, and so do operators and
    marks that stand beside a digit ("2 + 3", "3.5", "-4"), so that different sums stay different.
    A text of nothing but marks is left as it is.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    text = text.casefold()
    letters = text.translate(_NO_MARKS).split()
    if "".join(letters).isalpha():  # where no digit is no mark stays: the quick way for most texts
        return " ".join(letters)
    words = text.translate(_CHARACTERS).split()
    kept: list[str] = []
    for position, word in enumerate(words):
        if word.isalnum():
            kept.append(word)
        else:
            before = words[position - 1][-1] if position else ""
            after = words[position + 1][0] if position + 1 < len(words) else ""
            kept += _without_marks(word, before, after).split()
    return " ".join(kept or text.split())


def _without_marks(word: str, before: str, after: str) -> str:
    """A word without the marks in it that stand beside no digit; kept operators stand alone."""
    kept = []
    for position, character in enumerate(word):
        left = word[position - 1] if position else before
        right = word[position + 1] if position + 1 < len(word) else after
        if character not in _MARKS:
            kept.append(character)
        elif character in OPERATORS:
            kept.append(f" {character} " if left.isdigit() or right.isdigit() else " ")
        else:  # within a number only: at the end of a word it is punctuation
            inside = 0 < position < len(word) - 1
            kept.append(character if inside and left.isdigit() and right.isdigit() else " ")
    return "".join(kept)


def words_of(text: str) -> Words:
    return tuple(normalise(text).split())


def cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
