"""Scripts in which words stand beside each other without a space."""

from __future__ import annotations

import unicodedata

_UNSPACED = (
    (0x0E00, 0x109F),  # Thai, Lao, Tibetan, Burmese
    (0x1100, 0x11FF),  # Hangul; particles are written onto a word
    (0x1780, 0x17FF),  # Khmer
    (0x19E0, 0x19FF),
    (0x2E80, 0x2FDF),  # Han, kana and their neighbours
    (0x3005, 0x3007),
    (0x3021, 0x318F),
    (0x31A0, 0x31FF),
    (0x3400, 0x9FFF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
    (0xAC00, 0xD7FF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


def is_unspaced(char: str) -> bool:
    """Whether a letter may stand beside a word without being part of it."""
    return char > "\u0dff" and any(first <= ord(char) <= last for first, last in _UNSPACED)


def is_mark(char: str) -> bool:
    """Whether a character belongs to the letter before it."""
    return char > "\u02ff" and unicodedata.category(char)[0] == "M"


def is_of_word(char: str) -> bool:
    """Whether a character is part of a word."""
    return char.isalnum() or char == "_" or (char != "" and is_mark(char))
