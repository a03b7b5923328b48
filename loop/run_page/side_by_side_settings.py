"""How runs differ in what they began with: settings, resolved values, data, code, model, versions.

What a run did not record is said to be so. Equal values are told once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from errors import one_line
from ledger.store import RunStore
from pages.document import Block, Column, Paragraph, Section, Table
from settings.sameness import ADDED_SINCE, flat

VALUE_CHARS = 80
SHA_CHARS = 12
NOT_RECORDED = "not recorded"


class Setting(NamedTuple):
    """A value by its kind and name, of each run in their order."""

    kind: str
    name: str
    values: tuple[str, ...]

    @property
    def is_alike(self) -> bool:
        return len(set(self.values)) == 1


def recorded_values(store: RunStore) -> dict[tuple[str, str], str]:
    """All that a run began with, by kind and name. Raises `RunStoreError`."""
    settled = store.settled_config()
    # Of a setting that is younger than a run its default was used.
    settings = {**ADDED_SINCE, **flat(settled["config"])}
    found = {("setting", name): shown(value) for name, value in settings.items()}
    resolved = settled["resolved"]
    found |= {("resolved", name): shown(value) for name, value in flat(resolved).items()}
    versions = settled.get("versions")
    if isinstance(versions, dict):
        found |= {("version", str(name)): shown(value) for name, value in versions.items()}
    if not store.has_started:
        return found
    manifest = store.manifest()
    for name, file in {**manifest.files, **manifest.eval_tasks}.items():
        found["data, sha256", name] = file.sha256[:SHA_CHARS]
    for name, counts in manifest.examples.items():
        found["data, examples", name] = f"{counts.num_examples:,}"
        if counts.sha256 is not None:
            found["data, sha256 of what was kept", name] = counts.sha256[:SHA_CHARS]
    for path, sha256 in manifest.code.items():
        found["code, sha256", path] = sha256[:SHA_CHARS]
    if manifest.base_model is not None:
        for name, sha256 in manifest.base_model.files.items():
            found["base model, sha256", name] = sha256[:SHA_CHARS]
    found["version", "graders"] = str(manifest.grading)
    origin = store.origin
    found["origin", "started from"] = "the base model" if origin is None else origin.chain
    return found


def shown(value: Any) -> str:
    """A value of the settings as its file has it, in one line."""
    return one_line(json.dumps(value, ensure_ascii=False), VALUE_CHARS)


def settings_of(values_R: Sequence[Mapping[tuple[str, str], str]]) -> list[Setting]:
    """Every value of any of the runs, in the order in which runs have them."""
    keys = dict.fromkeys(key for values in values_R for key in values)
    return [
        Setting(*key, tuple(values.get(key, NOT_RECORDED) for values in values_R)) for key in keys
    ]


def settings_section(labels: Sequence[str], settings: Sequence[Setting]) -> Section:
    """What differs as a table with a column a run, and what is alike folded."""
    differing = [one for one in settings if not one.is_alike]
    alike = [one for one in settings if one.is_alike]
    blocks: list[Block] = []
    if differing:
        columns = [Column("name"), Column("kind"), *(Column(label) for label in labels)]
        rows = [[one.name, one.kind, *one.values] for one in differing]
        blocks.append(Table("What the runs differ in", columns, rows))
    else:
        blocks.append(Paragraph("The runs began with the same settings, data and code."))
    columns = [Column("name"), Column("kind"), Column("of all of them")]
    rows = [[one.name, one.kind, one.values[0]] for one in alike]
    blocks.append(Table("What is the same for all of them", columns, rows, is_folded=True))
    return Section("Settings, data and code", blocks, anchor="settings")
