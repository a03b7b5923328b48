"""The lists of rows that a run keeps: the first of each kind, of however many there are."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from errors import RunStoreError
from rows.examples import DroppedRow
from storage.stored_json import parse_object, record_of


def first_rows(path: Path, kinds: Collection[str], number: int) -> dict[str, list[DroppedRow]]:
    """The first rows of each kind; the file is read no further than that takes.

    Raises `RunStoreError` where it holds something else. A file that is not there holds nothing.
    """
    found: dict[str, list[DroppedRow]] = {kind: [] for kind in kinds}
    # Rows of a kind that has enough are not parsed: there may be a million.
    marks = {kind: f'"kind": {json.dumps(kind, ensure_ascii=False)}' for kind in kinds}
    try:
        if not path.is_file():
            return found
        with open(path, encoding="utf-8") as file:
            for line_no, line in enumerate(file, start=1):
                if not marks:
                    break
                if any(mark in line for mark in marks.values()):
                    row = _row(path, line_no, line)
                    if row.kind in marks:
                        found[row.kind].append(row)
                        if len(found[row.kind]) >= number:
                            del marks[row.kind]
    except (OSError, UnicodeDecodeError) as error:
        raise RunStoreError(f"{path}: cannot be read: {error}. Restore the file.") from None
    return found


def _row(path: Path, line_no: int, line: str) -> DroppedRow:
    try:
        return record_of(DroppedRow, parse_object(line))
    except ValueError as error:
        raise RunStoreError(
            f"{path} line {line_no}: not a row that a run lists: {error}. The file was changed by "
            "something else; restore it."
        ) from None
