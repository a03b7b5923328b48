"""A document as one HTML page that asks nothing of the network and runs no script.

The policy in its head lets a browser apply the page's own style, by its hash, and nothing else:
what slipped through the escaping would still do nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from itertools import count, groupby

from pages.charts import LineChart, line_chart
from pages.document import (
    Block,
    Bullets,
    Code,
    Document,
    Figure,
    Paragraph,
    Section,
    Table,
)
from pages.forest import forest_chart
from pages.markup import Markup, element, joined
from pages.style import STYLE

LONG_CELL = 30  # characters, from which a cell is given room for several words a line


def html_page(document: Document) -> str:
    """The whole page, to be written to a file as it is."""
    writer = _Writer()
    body = writer.blocks(document.blocks, level=2)
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = joined(
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("meta", {"name": "referrer", "content": "no-referrer"}),
        element("title", {}, document.title),
        element("style", {}, Markup(STYLE)),
        by="\n",
    )
    main = element(
        "main",
        {},
        joined(
            element("h1", {}, document.title),
            *writer.lead(document.blocks),
            _contents(writer.contents),
            *body,
            by="\n",
        ),
    )
    page = element("html", {"lang": "en"}, element("head", {}, head), element("body", {}, main))
    return f"<!DOCTYPE html>\n{page}\n"


def _contents(contents: Sequence[tuple[str, str]]) -> Markup:
    """Links to the sections, in their order."""
    items = [
        element("li", {}, element("a", {"href": f"#{name}"}, title)) for name, title in contents
    ]
    return element("nav", {"aria-label": "Contents"}, element("ul", {}, *items))


class _Writer:
    """Blocks to markup. It keeps what of a page is numbered: ids, and the sections' titles."""

    def __init__(self) -> None:
        self.contents: list[tuple[str, str]] = []
        self._ids = count(1)

    def lead(self, blocks: Sequence[Block]) -> Iterator[Markup]:
        """What stands above the contents: the paragraphs that a document begins with."""
        for block in blocks:
            if not isinstance(block, Paragraph):
                return
            yield _paragraph(block)

    def blocks(self, blocks: Sequence[Block], level: int) -> list[Markup]:
        """All blocks but the lead of the document, which `lead` writes."""
        rest = list(blocks)
        while level == 2 and rest and isinstance(rest[0], Paragraph):
            del rest[0]
        return self._inside(rest, level)

    def _inside(self, blocks: Sequence[Block], level: int) -> list[Markup]:
        """Charts that follow each other stand side by side where the page is wide."""
        made = []
        for is_figure, group in groupby(blocks, lambda block: isinstance(block, Figure)):
            written = [self._block(block, level) for block in group]
            made += [element("div", {"class": "figures"}, *written)] if is_figure else written
        return made

    def _block(self, block: Block, level: int) -> Markup:
        match block:
            case Paragraph():
                return _paragraph(block)
            case Bullets():
                return element("ul", {}, *(element("li", {}, item) for item in block.items))
            case Code():
                lines = (_flat(line) for line in block.lines)
                code = element("code", {}, joined(*lines, by="\n"))
                return element("pre", {"tabindex": "0"}, code)
            case Table():
                return self._folded(block) if block.is_folded else self._table(block)
            case Figure():
                return self._figure(block)
            case Section():
                return self._section(block, level)

    def _section(self, section: Section, level: int) -> Markup:
        name = f"section-{next(self._ids)}"
        if level == 2:
            self.contents.append((name, section.title))
        heading = element(f"h{min(level, 6)}", {"id": name}, section.title)
        inside = self._inside(section.blocks, level + 1)
        return element("section", {"aria-labelledby": name}, joined(heading, *inside, by="\n"))

    def _table(self, table: Table) -> Markup:
        """In a box of its own that scrolls where the page is narrow, also by keyboard."""
        name = f"table-{next(self._ids)}"
        titles = [
            element("th", {"scope": "col"} | _kind(column.is_number), _breaking(column.title))
            for column in table.columns
        ]
        rows = []
        for row in table.rows:
            first, *rest = (
                (cell, _kind(column.is_number, cell))
                for cell, column in zip(row, table.columns, strict=True)
            )
            cells = [element("th", {"scope": "row"} | first[1], first[0])]
            cells += [element("td", kind, cell) for cell, kind in rest]
            rows.append(element("tr", {}, *cells))
        whole = element(
            "table",
            {},
            element("caption", {"id": name}, element("span", {}, table.whole_caption)),
            element("thead", {}, element("tr", {}, *titles)),
            element("tbody", {}, joined(*rows, by="\n")),
        )
        box = {"class": "scroll", "role": "region", "aria-labelledby": name, "tabindex": "0"}
        return element("div", box, whole)

    def _folded(self, table: Table) -> Markup:
        summary = element("summary", {}, f"{table.caption} ({_rows(len(table.rows))})")
        return element("details", {}, summary, self._table(table))

    def _figure(self, figure: Figure) -> Markup:
        name, words = f"chart-{next(self._ids)}", (figure.title, figure.description)
        if isinstance(figure.chart, LineChart):
            drawn = line_chart(figure.chart, name, words)
        else:
            drawn = forest_chart(figure.chart, name, words)
        caption = element(
            "figcaption", {}, element("b", {}, figure.title), f" {figure.description}"
        )
        return element("figure", {}, caption, drawn, self._folded(figure.numbers))


def _paragraph(paragraph: Paragraph) -> Markup:
    return element("p", {"class": "lead"} if paragraph.is_lead else {}, paragraph.text)


def _breaking(title: str) -> Markup:
    """A title that may go on in the next line behind an underscore, as names have them."""
    head, *rest = title.split("_")
    parts = [joined("_", element("wbr", {}), part) for part in rest]
    return joined(head, *parts)


def _kind(is_number: bool, cell: str = "") -> dict[str, str]:
    """The class of a cell: numbers stand to the right, a sentence needs room."""
    if is_number:
        return {"class": "number"}
    return {"class": "long"} if len(cell) > LONG_CELL else {}


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number:,} rows"


def _flat(line: str) -> str:
    return line.replace("\n", " ")
