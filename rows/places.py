"""Where a row is to be looked up: its file, its line and its first words; never only a hash."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from errors import one_line
from rows.examples import DroppedRow, Example, Message

DROPPED = "data_dropped.jsonl"  # the lists of rows that are not trained on,
SIMILAR = "data_similar.jsonl"  # and of those that are, and worth a look
MAX_FIRST_WORDS = 80  # characters of what is asked first


@dataclass(frozen=True)
class RowPlace:
    """An example by its id, and where it is to be looked up."""

    example_id: str
    file: str
    line_no: int
    text: str

    def __str__(self) -> str:
        return place_text(self.file, self.line_no, self.text)


def place_of(example: Example) -> RowPlace:
    return RowPlace(example.id, example.source, example.line_no, first_words(example.messages))


def first_words(messages: Iterable[Message]) -> str:
    """The start of what a user asks first in a conversation."""
    asked = next(message.content for message in messages if message.role == "user")
    return one_line(asked, MAX_FIRST_WORDS)


def place_text(file: str, line_no: int, text: str | None) -> str:
    """A place as a line has it; a row that could not be read has no words."""
    place = f"{file} line {line_no}"
    return f"{place} ({one_line(text, MAX_FIRST_WORDS)!r})" if text else place


def dropped_text(row: DroppedRow) -> str:
    """A row by its place and its first words, and what became of it."""
    return f"{place_text(row.file, row.line_no, row.text)}: {row.reason}"


def row_lines(rows: Iterable[DroppedRow]) -> Iterator[str]:
    """The lines of a list of rows, as its file has them."""
    return (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
