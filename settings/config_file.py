"""A config file as it is read: one JSON object, with `--set KEY=VALUE` applied to it.

What JSON allows and no person means (a key twice, nesting without end) is refused here; what the
keys mean is the schema's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from errors import ConfigError
from storage.stored_json import RepeatedKeyError, refuse_depth, unique_keys

MAX_CONFIG_BYTES = 4 * 2**20
MAX_DEPTH = 50  # objects and lists within each other
# Where the reader stops at a comment, that is what is wrong; elsewhere, as in a string with a URL,
# such signs are none.
_COMMENT = re.compile(r"[\s,]*(//|/\*|#)")


def with_overrides(raw: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return a copy of a config with `KEY=VALUE` overrides applied."""
    changed = json.loads(json.dumps(raw))
    for override in overrides:
        _apply_override(changed, override)
    return changed


def read_object(file: Path, given_as: str = "--config", kind: str = "config") -> dict[str, Any]:
    """The one JSON object in a file. `given_as` names it in errors, and `kind` is what it holds.

    Raises `ConfigError`.
    """
    try:
        with open(file, "rb") as opened:  # no more than that, or /dev/zero would have no end
            content = opened.read(MAX_CONFIG_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: there is no such file. Give {given_as} the path of a JSON {kind}."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}: the {kind} cannot be read: {error}. Give {given_as} a JSON file."
        ) from None
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"{file}: longer than {MAX_CONFIG_BYTES // 2**20} MiB. Give {given_as} a JSON file."
        )
    try:
        raw = json.loads(text, object_pairs_hook=unique_keys)
        refuse_depth(raw, MAX_DEPTH)
    except json.JSONDecodeError as error:
        hint = " JSON has no comments; remove them." if _COMMENT.match(text, error.pos) else ""
        raise ConfigError(
            f"{file} line {error.lineno} column {error.colno}: not valid JSON: {error.msg}.{hint}"
        ) from None
    except RepeatedKeyError as error:
        raise ConfigError(
            f"{file}: the key '{as_shown(error.key)}' stands twice in one object. Keep one."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: a {kind} is one JSON object, found {type_name(raw)}.")
    return raw


def as_shown(text: str, limit: int = 60) -> str:
    """A text of the user's as messages show it: cut, control characters escaped."""
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return text if text.isprintable() else repr(text)[1:-1]


def _apply_override(raw: dict[str, Any], override: str) -> None:
    """Apply one `--set KEY=VALUE`; VALUE is JSON, or else a string; KEY may be dotted."""
    key, equals, text = override.partition("=")
    shown = as_shown(override)
    if not equals or not key.strip():
        raise ConfigError(f"--set {shown}: expected KEY=VALUE, for example --set lora_rank=8.")
    try:
        value = json.loads(text)
        refuse_depth(value, MAX_DEPTH)
    except ValueError:
        value = text
    except RecursionError:
        raise ConfigError(f"--set {shown}: the value is nested too deeply.") from None
    *groups, leaf = key.strip().split(".")
    for group in groups:
        inner = raw.get(group)
        if inner is None:  # also written as null, as a recorded config has groups of other methods
            inner = raw[group] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {shown}: {as_shown(group)} is not a group of settings.")
        raw = inner
    raw[leaf] = value


def type_name(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")
