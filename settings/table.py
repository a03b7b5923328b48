"""The settings as a table: each with its default and one line on what it means."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, get_args

from pydantic.fields import FieldInfo

from settings.groups import Settings
from settings.method_groups import MethodSettings


class SettingRow(NamedTuple):
    """One line of the settings table."""

    key: str
    default: str
    description: str


def rows_of(fields: Mapping[str, FieldInfo], prefix: str = "") -> Iterator[SettingRow]:
    """Yield a row for every setting, groups dotted, in the order of the schema."""
    for name, field in fields.items():
        group = _group_of(field)
        if group is not None:
            yield from rows_of(group.model_fields, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else json.dumps(field.default)
            yield SettingRow(f"{prefix}{name}", default, field.description or "")


def _group_of(field: FieldInfo) -> type[Settings] | None:
    """The group that a setting is, also where only one method has it."""
    annotation: Any = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    kinds = [one for one in get_args(annotation) if isinstance(one, type)]
    return next((one for one in kinds if issubclass(one, MethodSettings)), None)


def table_of(rows: Iterable[SettingRow]) -> str:
    """The settings as a Markdown table, as it stands in docs/settings.md."""
    lines = (f"| `{row.key}` | {row.default} | {row.description} |" for row in rows)
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *lines])
