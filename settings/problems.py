"""What is wrong with a config, as the schema finds it: a place and a sentence."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

MAX_PROBLEMS = 20  # that one message explains
# Where a value may be of several kinds, pydantic adds the name of each to the place.
_KINDS = re.compile(r"constrained-|literal\[|kind-")
# What a pattern of the schema means, for people.
_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": "a name has letters from a to z, digits and ., _ or -, "
    "begins with a letter or digit, and is at most 64 long",
    r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$": "a name has letters from a to z, digits and _ or -, "
    "begins with a letter or digit, and is at most 64 long",
    r"^\d{4}-\d{2}-\d{2}$": "a day is written as 2026-01-31",
}


class Problem(NamedTuple):
    """What is wrong with a config: the dotted key, empty for what is between keys, and a sentence
    that names it, with what was found and what to do."""

    key: str
    sentence: str


class Problems(NamedTuple):
    """The first problems of a config, and how many there are: to explain one takes a while."""

    told: list[Problem]
    num: int


def place_of(problem: Any) -> list[str | int]:
    """The keys and numbers that one of pydantic's errors lies below."""
    return [part for part in problem["loc"] if not _KINDS.match(str(part))]


def message_of(problem: Any) -> str:
    """What one of pydantic's errors says, in words where its own would be a pattern."""
    if problem["type"] == "string_pattern_mismatch":
        words = _PATTERNS.get(problem["ctx"]["pattern"])
        if words is not None:
            return words
    return problem["msg"][0].lower() + problem["msg"][1:].rstrip(".")
