"""What is wrong with a config, as the schema finds it: a place and a sentence."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

MAX_PROBLEMS = 20  # that one message explains
# Where a value may be of several kinds, pydantic adds the name of each to the place.
_KINDS = re.compile(r"constrained-|literal\[|kind-")


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
