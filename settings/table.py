"""The settings as a table: each with its default and one line on what it means."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pydantic.fields import FieldInfo

from settings.groups import Settings


class SettingRow(NamedTuple):
    """One line of the settings table."""

    key: str
    default: str
    description: str


def rows_of(fields: Mapping[str, FieldInfo], prefix: str = "") -> Iterator[SettingRow]:
    """Yield a row for every setting, groups dotted, in the order of the schema."""
    for name, field in fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Settings):
            yield from rows_of(annotation.model_fields, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else json.dumps(field.default)
            yield SettingRow(f"{prefix}{name}", default, field.description or "")


def table_of(rows: Iterable[SettingRow]) -> str:
    """The settings as a Markdown table, as it stands in docs/settings.md."""
    lines = (f"| `{row.key}` | {row.default} | {row.description} |" for row in rows)
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *lines])
