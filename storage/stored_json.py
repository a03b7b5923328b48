"""JSON of a run directory, which may be somebody else's: the value or record that was meant, or a
`ValueError` that says in one line what is wrong with it.

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


def parse(text: str | bytes) -> Any:
    """Read JSON. Raises `ValueError`, also for what JSON allows and nobody here writes: numbers
    without end or of any size, halves of surrogate pairs, and endless nesting."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for one in level for inner in _inner_of(one)]
        if not level:
            return value
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _inner_of(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, list):
        return value
    if isinstance(value, str) and not value.isascii():
        value.encode()  # refuses halves of surrogate pairs
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"it holds the number {value}")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ValueError("it holds an integer of more than 64 bits")
    return ()


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
