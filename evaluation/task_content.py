"""A task's content in one form: whatever a model, a solver or a scorer of it may see.

What is the same has the same form in every process, so that its sha256 tells whether a task is
still the one that an earlier evaluation asked.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import hashlib
import json
import re
from collections.abc import Mapping, Set
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.dataset import Sample

_LIMITS = ("message_limit", "token_limit", "time_limit", "working_limit", "cost_limit")


def content_sha256(task: Task, said: Mapping[str, Any]) -> str:
    """The sha256 of all that a task asks, and of what is `said` of it besides.

    Of each sample: every message with its tool calls, choices, target, metadata, files, setup and
    sandbox; of the task: version, generation settings, limits, sandbox.
    """
    shape = {
        "samples": [_sample(sample) for sample in task.dataset],
        "version": task.version,
        "config": task.config.model_dump(exclude_none=True),
        "limits": {name: getattr(task, name, None) for name in _LIMITS},
        "sandbox": task.sandbox,
        "of_task": said,
    }
    text = json.dumps(plain(shape), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _sample(sample: Sample) -> dict[str, Any]:
    asked = sample.input
    fields = {key: value for key, value in sample if key != "input"}
    messages = asked if isinstance(asked, str) else [_message(one) for one in asked]
    return {**fields, "input": messages}


def _message(message: Any) -> dict[str, Any]:
    """A message without its id, which Inspect draws anew each time."""
    return {key: value for key, value in message if key != "id"}


def plain(value: Any) -> Any:
    """A value as JSON has it; what has no such form is told by its type and its content."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {_key(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Set):
        return sorted((plain(one) for one in value), key=lambda one: json.dumps(one, default=str))
    if isinstance(value, bytes | bytearray):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, datetime.date | datetime.time | PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # of numpy
        return plain(value.tolist())
    return _of_object(value)


def _of_object(value: Any) -> Any:
    fields: Any = getattr(value, "__dict__", None)
    if dataclasses.is_dataclass(value):  # one with slots has no `__dict__`
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if fields and not callable(value):
        return {"type": type(value).__qualname__, "fields": plain(fields)}
    name = getattr(value, "__qualname__", None)
    return name if name is not None else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _key(key: Any) -> str:
    return key if isinstance(key, str) else json.dumps(plain(key))
