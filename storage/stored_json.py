"""JSON that may be anybody's: the value or record that was meant, or a `ValueError` that says in
one line what is wrong with it. What JSON allows and no person means is refused.

Nothing else is told of it than its shape; what the numbers mean is its reader's to judge.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

T = TypeVar("T")

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Measure = Annotated[float, Field(ge=-1e40, le=1e40)]  # beyond float32, and its square is a number

MAX_DEPTH = 40
MAX_INTEGER = 2**63


class RepeatedKeyError(ValueError):
    """An object names one key twice; JSON readers would drop the first without a word."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} stands twice in one object")
        self.key = key


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its pairs, for `json.loads`. Raises `RepeatedKeyError`."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return made


def refuse_depth(value: Any, max_depth: int, depth: int = 1) -> None:
    """Raise `RecursionError` early, for what somebody would fail to recurse through later."""
    if depth > max_depth:
        raise RecursionError(f"objects and lists are nested more than {max_depth} deep.")
    for one in _inner_of(value):
        refuse_depth(one, max_depth, depth + 1)


def _inner_of(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def parse(text: str | bytes) -> Any:
    """Read JSON. Raises `ValueError`, also for what JSON allows and nobody here writes: numbers
    without end or of any size, halves of surrogate pairs, and endless nesting."""
    try:
        value = json.loads(text)
        refuse_depth(value, MAX_DEPTH)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one
        waiting += _inner_of(one)
        if isinstance(one, str) and not one.isascii():
            one.encode()  # refuses halves of surrogate pairs
        elif isinstance(one, float) and not math.isfinite(one):
            raise ValueError(f"it holds the number {one}")
        elif isinstance(one, int) and abs(one) > MAX_INTEGER:
            raise ValueError("it holds an integer of more than 64 bits")
    return value


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Read a JSON object. Raises `ValueError`."""
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def record_of(kind: type[T], data: Any) -> T:
    """The record (dataclass, named tuple, typed dictionary, or a collection of them) that `data`
    was written from. Raises `ValueError` naming the field that does not fit."""
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"])) or "it"
        raise ValueError(f"{place[:100]}: {problem['msg']}") from None


@functools.cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)
