"""Nested values and their dotted keys: one made of the other, and one put into another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values with their keys dotted; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested values with those of `above` put in: mappings key by key, all else whole."""
    made = copy.deepcopy(below)
    for key, value in above.items():
        before = made.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            made[key] = merged(before, value)
        else:
            made[key] = copy.deepcopy(value)
    return made


def put(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a value of nested ones by its dotted key."""
    *groups, leaf = dotted.split(".")
    for group in groups:
        inner = values.get(group)
        if not isinstance(inner, dict):
            inner = values[group] = {}
        values = inner
    values[leaf] = copy.deepcopy(value)


def nested(values: Mapping[str, Any], named: Callable[[str], str]) -> dict[str, Any]:
    """Parameters as nested settings: by the framework's names, dotted keys taken apart."""
    made: dict[str, Any] = {}
    for key, value in values.items():
        *groups, leaf = named(key).split(".")
        one: dict[str, Any] = {leaf: value}
        for group in reversed(groups):
            one = {group: one}
        made = merged(made, one)
    return made
