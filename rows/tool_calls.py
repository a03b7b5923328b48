"""Tools, calls of them and their answers, in the spellings of public files; values as JSON text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from rows.examples import Message, ToolCall
from rows.sources import is_text
from storage.stored_json import RepeatedKeyError, unique_keys

TOOL_KEYS = ("tools", "functions")
CALL_KEYS = {"id", "type", "function", "index", "name", "arguments", "parameters"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_WRAPPED = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)


def tool_answers(content: Any, what: str) -> list[str]:
    """What a tool said; a file that wraps it as a chat format does is unwrapped."""
    if is_blank(content):
        raise ValueError(f"{what}'s content is empty")
    text = content if isinstance(content, str) else _as_json(content)
    wrapped = _WRAPPED.findall(text)
    is_whole = wrapped and not _WRAPPED.sub("", text).strip()
    return [text_of(one, f"{what}'s content") for one in (wrapped if is_whole else [text])]


def calls_of(given: Mapping[str, Any], what: str, unused: set[str]) -> tuple[ToolCall, ...]:
    if "tool_calls" in given and "function_call" in given:
        raise ValueError(f"{what} has tool_calls and function_call; keep one")
    raw = given.get("tool_calls", given.get("function_call"))
    return () if raw is None else calls_in(decoded(raw), what, unused)


def calls_in(raw: Any, what: str, unused: set[str]) -> tuple[ToolCall, ...]:
    """The calls of a message: OpenAI's, or bare names with arguments."""
    calls: list[ToolCall] = []
    for item in raw if isinstance(raw, list) else [raw]:
        item = decoded(item)
        body = decoded(item.get("function", item)) if isinstance(item, dict) else None
        if not isinstance(body, dict) or not isinstance(body.get("name"), str):
            raise ValueError(f"{what} has a tool call without a name")
        if item.get("type") not in (None, "function"):
            raise ValueError(f"{what} has a tool call of type {item['type']!r}, not function")
        given = body.get("arguments", body.get("parameters"))
        given = {} if is_blank(given) else given
        arguments = given if isinstance(given, str) else _as_json(given)
        keys = {key for one in (item, body) for key, value in one.items() if not is_blank(value)}
        unused |= {f"messages[].tool_calls[].{key}" for key in keys - CALL_KEYS}
        if not isinstance(_unique(arguments, what), dict):
            raise ValueError(
                f"{what}'s call of {body['name']} has arguments that are no JSON object"
            )
        call_id = item.get("id")
        calls.append(
            ToolCall(
                text_of(body["name"], "a call's name"),
                text_of(arguments, "a call's arguments"),
                None if call_id is None else text_of(str(call_id), "a call's id"),
            )
        )
    return tuple(calls)


def with_names(messages: list[Message]) -> list[Message]:
    """Tool turns with the name of the call that they answer."""
    names: dict[str, str] = {}
    named: list[Message] = []
    for message in messages:
        names |= {call.id: call.name for call in message.calls if call.id is not None}
        if message.role == "tool" and message.name is None and message.call_id in names:
            message = message._replace(name=names[message.call_id])
        named.append(message)
    return named


def tools_of(given: Mapping[str, Any]) -> str | None:
    """The tools that a row offers, as the JSON text of a list of functions."""
    offered = {key: decoded(given[key]) for key in TOOL_KEYS if key in given}
    if not offered:
        return None
    if len(offered) > 1:
        raise ValueError("tools and functions are both given; keep one")
    ((key, raw),) = offered.items()
    functions = []
    for tool in raw if isinstance(raw, list) else [raw]:
        tool = decoded(tool)
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f'"{key}" holds a tool without a name')
        if isinstance(tool, dict) and tool.get("type") not in (None, "function", "object"):
            raise ValueError(f'"{key}" holds a tool of type {tool["type"]!r}, not function')
        functions.append(function)
    return text_of(_as_json(functions), f'"{key}"')


def _unique(arguments: str, what: str) -> Any:
    """The value of JSON text. Raises `ValueError` for a key that stands twice in it."""
    try:
        return json.loads(arguments, object_pairs_hook=unique_keys)
    except RepeatedKeyError as error:
        raise ValueError(f"{what} has a call with the argument {error.key!r} twice") from None
    except (ValueError, RecursionError):
        return None


def _as_json(value: Any) -> str:
    """JSON text of what a dataset may hold; a date, say, is its own text."""

    def as_text(other: Any) -> str:
        is_bytes = isinstance(other, bytes)
        return other.decode("utf-8", "backslashreplace") if is_bytes else str(other)

    return json.dumps(value, ensure_ascii=False, default=as_text)


# --- values ---------------------------------------------------------------------------------------


def is_blank(value: Any) -> bool:
    """Whether a value stands for none."""
    if isinstance(value, str):
        return not value or value.isspace()
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or value == []
        or value == {}
    )


def is_blank_json(value: Any) -> bool:
    """Whether a text is JSON for nothing, as Parquet and CSV files have it."""
    return isinstance(value, str) and value.strip() in ("[]", "{}", "null")


def number_of(text: str) -> float | None:
    """The number that a text plainly is."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def decoded(value: Any) -> Any:
    """What a value is that may be written as JSON text, as Parquet and CSV files do."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str) and value[:64].lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def text_of(value: Any, what: str) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        hint = f" but the number {value}; write it in quotes" if is_number else ""
        raise ValueError(f"{what} is not a string{hint}")
    if not value.strip():
        raise ValueError(f"{what} is empty")
    if not is_text(value):
        raise ValueError(f"{what} holds a lone surrogate, which no tokenizer can encode")
    return value
