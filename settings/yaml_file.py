"""YAML that may be anybody's, as plain values with the line of each, or one paragraph on why not.

Numbers and booleans are those of YAML 1.2, where `3e-4` is a number, `2025-11-09` a text and `true`
the only truth; what YAML 1.1 means otherwise by the same word (`yes`, `010`, `1_000`, `1:30`) is
refused, since nobody can see which was meant. Tags, merge keys and complex keys are refused too; a
file and what its aliases come to are bounded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from errors import ConfigError, one_line

MAX_BYTES = 256 * 1024
MAX_VALUES = 50_000  # with every alias followed
MAX_DEPTH = 30
MAX_SHOWN = 60
MAX_DIGITS = 18  # of a whole number; more of them are no count and no id

Place = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_PLAIN = "plain"  # neither quoted nor tagged
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
# What one version of YAML reads as a text and the other as something else, and how to write it.
_DOUBTFUL = (
    (re.compile(r"(?i)yes|no|on|off"), "a truth in YAML 1.1 and a text in 1.2", "true or false"),
    (re.compile(r"[-+]?0[0-9]+"), "octal in YAML 1.1 and decimal in 1.2", "the number without 0"),
    (
        re.compile(r"[-+]?[0-9][0-9]*(_[0-9]+)+(\.[0-9_]*)?|[-+]?0b[01_]+"),
        "a number in YAML 1.1 and a text in 1.2",
        "plain digits",
    ),
    (
        re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?"),
        "a number to base 60 in YAML 1.1 and a text in 1.2",
        "plain digits",
    ),
)


@dataclass(frozen=True)
class YamlFile:
    """What a file holds, and where: `lines` has the line of each value by its place."""

    path: Path
    content: dict[str, Any]
    lines: dict[Place, int]

    def line_of(self, place: Sequence[str | int]) -> int:
        """The line of a value, or of the nearest one that it would lie in."""
        inner = tuple(place)
        while inner not in self.lines:
            inner = inner[:-1]
        return self.lines[inner]

    def error(self, place: Sequence[str | int], problem: str) -> ConfigError:
        """What is wrong with a value, with its file and line."""
        return ConfigError(f"{self.path} line {self.line_of(place)}: {problem}")


def read_yaml(path: Path, what: str) -> YamlFile:
    """Read a mapping, `what` it is said in messages. Raises `ConfigError`."""
    text = _text_of(path, what)
    try:
        root = yaml.compose(text, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f" line {mark.line + 1} column {mark.column + 1}"
        raise ConfigError(
            f"{path}{place}: not valid YAML: {one_line(str(error.problem or error.context), 200)}. "
            "Check indents, colons and quotes there."
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"{path}: not valid YAML: {one_line(str(error), 200)}. Write it as plain text."
        ) from None
    except RecursionError:
        raise ConfigError(
            f"{path}: lists and mappings are nested more than {MAX_DEPTH} deep. Write it flatter."
        ) from None
    if not isinstance(root, yaml.MappingNode):
        found = "nothing" if root is None else "a list" if root.id == "sequence" else "one value"
        raise ConfigError(f"{path}: {what} is a mapping of keys to values; it holds {found}.")
    reader = _Reader(path)
    return YamlFile(path, reader.value_of(root, ()), reader.lines)


def _text_of(path: Path, what: str) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise ConfigError(f"{path}: no regular file. Write {what} there.")
        with open(path, "rb") as opened:
            content = opened.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file. Write {what} there.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path} line {line}: not UTF-8. Save the file as UTF-8.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: {what} cannot be read: {error}. Put a readable file there."
        ) from None
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{path}: longer than {MAX_BYTES // 1024} KiB. It is {what}, not data; keep rows in "
            "files of their own."
        )
    return text


class _PlainLoader(yaml.SafeLoader):
    """Composes nodes; what a plain word means is told from its text by the reader below."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        is_plain = kind is yaml.ScalarNode and implicit[0]
        return _PLAIN if is_plain else super().resolve(kind, value, implicit)


class _Reader:
    """Makes plain values of nodes, noting lines, and refuses what is not plain."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Place, int] = {}
        self._num_values = 0

    def value_of(self, node: yaml.Node, place: Place) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(place, line)
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise self._error(
                line,
                f"the file comes to more than {MAX_VALUES:,} values with its aliases followed. "
                "Write it out without them.",
            )
        if len(place) > MAX_DEPTH:  # an alias that lies in itself, among others
            raise self._error(
                line, f"lists and mappings are nested more than {MAX_DEPTH} deep. Write it flatter."
            )
        if isinstance(node, yaml.MappingNode):
            self._check_tag(node, "map")
            return self._mapping_of(node, place)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, "seq")
            return [self.value_of(one, (*place, i)) for i, one in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar_of(node)

    def _mapping_of(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self._scalar_of(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if key == "<<" and key_node.tag == _PLAIN:
                raise self._error(line, "merge keys (<<) are not read. Write the keys out.")
            if not isinstance(key, str):
                raise self._error(line, "a key is a word or a quoted text. Quote it.")
            if key in made:
                first = self.lines[(*place, key)]
                raise self._error(
                    line,
                    f"the key '{shown(key)}' stands twice in one mapping, first in line {first}. "
                    "Keep one.",
                )
            self.lines[(*place, key)] = line
            made[key] = self.value_of(value_node, (*place, key))
        return made

    def _scalar_of(self, node: yaml.ScalarNode) -> Any:
        text, line = node.value, node.start_mark.line + 1
        if any(0xD800 <= ord(c) < 0xE000 for c in text):
            raise self._error(line, "half of a surrogate pair is no character. Take it out.")
        if any(not c.isprintable() and c not in "\n\t\xa0\u3000" for c in text):
            raise self._error(
                line, f"a control character in '{shown(text)}'. Take it out, it cannot be seen."
            )
        if node.tag == _PLAIN:
            return self._plain(text, line)
        self._check_tag(node, "str")
        return text

    def _plain(self, text: str, line: int) -> Any:
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        for pattern, means, instead in _DOUBTFUL:
            if pattern.fullmatch(text):
                raise self._error(
                    line,
                    f"{text} is {means}. Write {instead}, or put it in quotes if it is a text.",
                )
        if _INT.fullmatch(text) and len(text) <= MAX_DIGITS:
            return int(text, 0)
        if _NOT_FINITE.fullmatch(text):
            raise self._error(line, f"{text} is no finite number. Write a number, or null.")
        if _FLOAT.fullmatch(text):
            number = float(text)
            if not math.isfinite(number) or _INT.fullmatch(text):
                raise self._error(
                    line, f"{shown(text)} is too large for a number. Write a smaller one."
                )
            return number
        return text

    def _check_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag != f"{_TAG}{kind}":
            raise self._error(
                node.start_mark.line + 1,
                f"the tag {shown(str(node.tag))} is not read. Write a plain value.",
            )

    def _error(self, line: int, problem: str) -> ConfigError:
        return ConfigError(f"{self.path} line {line}: {problem}")


class _PlainDumper(yaml.SafeDumper):
    """Quotes every text that a reader of any version could take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    is_doubtful = any(
        pattern.fullmatch(text) for pattern in (_NULL, _BOOL, _INT, _FLOAT, _NOT_FINITE)
    ) or any(pattern.fullmatch(text) for pattern, _, _ in _DOUBTFUL)
    return dumper.represent_scalar(f"{_TAG}str", text, style="'" if is_doubtful else None)


_PlainDumper.add_representer(str, _text_node)


def dump_yaml(values: Any) -> str:
    """Plain values as YAML that `read_yaml` gives back."""
    return yaml.dump(values, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=100)


def shown(text: str) -> str:
    """A name as messages show it: one printable line, cut."""
    return one_line(text, MAX_SHOWN)


def as_value(value: object) -> str:
    """A value as messages show it, a text in quotes."""
    return one_line(json.dumps(value, ensure_ascii=False, default=str), MAX_SHOWN)
