"""What a report says, without how it is shown: sections, paragraphs, tables, charts.

One structure, rendered by `pages.html` and `pages.markdown`. All texts are plain: no markup, one
line each, from anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pages.charts import LineChart
from pages.forest import ForestChart


@dataclass(frozen=True)
class Paragraph:
    """A sentence or several. `is_lead` is what a reader in a hurry reads."""

    text: str
    is_lead: bool = False


@dataclass(frozen=True)
class Verdict:
    """What a page comes to, in a word and a sentence; the tone is a colour beside the word."""

    word: str
    text: str
    tone: Literal["good", "bad", "open"] = "open"


class Tile(NamedTuple):
    """A figure to be seen first, with what it is and what it rests on."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """The few figures that matter most, side by side."""

    items: Sequence[Tile]


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Lines to be typed or copied."""

    lines: Sequence[str]


class Link(NamedTuple):
    """A place in this page (`#id`) or a file beside it, as a relative path; never an address."""

    text: str
    href: str


@dataclass(frozen=True)
class Links:
    """Links in a line of their own, with what they are for before them."""

    intro: str
    items: Sequence[Link]


class Piece(NamedTuple):
    """Part of a text; one with a weight is marked, in words too where the weight is not 1."""

    text: str
    weight: float


@dataclass(frozen=True)
class Marked:
    """A text of several lines in pieces, such as a row with the tokens that carry loss marked.

    `note` stands above it. In Markdown marked pieces stand in brackets.
    """

    note: str
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class Mount:
    """A place that the page's script fills; `without` is said where no script runs."""

    mount_id: str
    without: str


@dataclass(frozen=True)
class Beside:
    """Two columns where a page is wide, one below the other where it is narrow."""

    left: Sequence[Block]
    right: Sequence[Block]


@dataclass(frozen=True)
class Folded:
    """What is opened by who wants it."""

    title: str
    blocks: Sequence[Block]


class Column(NamedTuple):
    title: str
    is_number: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under titles; the first cell of a row names it. `is_folded`: opened by who wants it.
    `note` stands behind the caption, and not in the line that a folded table is opened by.
    `shades`, where given, has a share from 0 to 1 for each cell, which is shaded by it; None for
    one that is not. What it stands for is in the cell's text as well."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    is_folded: bool = False
    note: str = ""
    shades: Sequence[Sequence[float | None]] = ()

    @property
    def whole_caption(self) -> str:
        return f"{self.caption.rstrip('.')}. {self.note}" if self.note else self.caption

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.caption
        shapes = [len(row) for row in self.shades]
        assert not shapes or shapes == [len(row) for row in self.rows], self.caption


@dataclass(frozen=True)
class Figure:
    """A chart, what it shows in a sentence, and its numbers, which take its place in Markdown."""

    title: str
    description: str
    chart: LineChart | ForestChart
    numbers: Table


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; sections in it have the next smaller heading.

    `anchor` is the id that links name it by; without one it is numbered.
    """

    title: str
    blocks: Sequence[Block]
    anchor: str = ""


Lead = Paragraph | Verdict | Tiles  # what a document may begin with, above its contents
Block = Lead | Bullets | Code | Links | Marked | Mount | Beside | Folded | Table | Figure | Section


@dataclass(frozen=True)
class Document:
    title: str
    blocks: Sequence[Block]
