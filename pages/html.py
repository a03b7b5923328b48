"""A document as one HTML page that asks nothing of the network.

The policy in its head lets a browser apply the page's own style and run its own scripts, each by
its hash, and nothing else: what slipped through the escaping would still do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby

from pages.charts import LineChart, line_chart
from pages.document import (
    Beside,
    Block,
    Bullets,
    Code,
    Document,
    Figure,
    Folded,
    Lead,
    Links,
    Marked,
    Mount,
    Paragraph,
    Section,
    Table,
    Tiles,
    Verdict,
)
from pages.forest import forest_chart
from pages.markup import Markup, element, joined
from pages.style import NUM_SHADES, STYLE

_BASE64 = re.compile(r"[A-Za-z0-9+/=]*")
LONG_CELL = 30  # characters, from which a cell is given room for several words a line


@dataclass(frozen=True)
class DataPart:
    """Data for the page's scripts, as base64 text, which no markup can stand in."""

    part_id: str
    base64_text: str

    def __post_init__(self) -> None:
        assert _BASE64.fullmatch(self.base64_text), self.part_id


@dataclass(frozen=True)
class Behaviour:
    """What a page does beyond being read. Scripts and style are ours alone, never made of data.

    `connects`: its scripts may ask the server that the page came from.
    """

    scripts: Sequence[str] = ()
    style: str = ""
    parts: Sequence[DataPart] = ()
    connects: bool = False


def html_page(document: Document, behaviour: Behaviour = Behaviour()) -> str:
    """The whole page, to be written to a file as it is."""
    writer = _Writer()
    body = writer.blocks(document.blocks, level=2)
    style = STYLE + behaviour.style
    policy = _policy(style, behaviour)
    head = joined(
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("meta", {"name": "referrer", "content": "no-referrer"}),
        element("title", {}, document.title),
        element("style", {}, Markup(style)),
        by="\n",
    )
    main = element(
        "main",
        {},
        joined(
            element("h1", {}, document.title),
            *writer.lead(document.blocks),
            element("a", {"href": "#content", "class": "skip"}, "Skip the contents"),
            _contents(writer.contents),
            element("div", {"id": "content", "tabindex": "-1"}, joined(*body, by="\n")),
            by="\n",
        ),
    )
    data = [
        element("script", {"type": "text/plain", "id": part.part_id}, Markup(part.base64_text))
        for part in behaviour.parts
    ]
    scripts = [element("script", {}, Markup(script)) for script in behaviour.scripts]
    inside = joined(main, *data, *scripts, by="\n")
    page = element("html", {"lang": "en"}, element("head", {}, head), element("body", {}, inside))
    return f"<!DOCTYPE html>\n{page}\n"


def _policy(style: str, behaviour: Behaviour) -> str:
    """What a browser may apply, run and ask; data in a page is never run, and needs no leave."""
    scripts = " ".join(_hash_source(script) for script in behaviour.scripts)
    parts = ["default-src 'none'", f"style-src {_hash_source(style)}"]
    parts += [f"script-src {scripts}"] if scripts else []
    parts += ["connect-src 'self'"] if behaviour.connects else []
    return "; ".join([*parts, "base-uri 'none'", "form-action 'none'"])


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


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
        """What stands above the contents: what a document begins with."""
        for block in blocks:
            if not isinstance(block, Lead):
                return
            yield self._block(block, 2)

    def blocks(self, blocks: Sequence[Block], level: int) -> list[Markup]:
        """All blocks but the lead of the document, which `lead` writes."""
        rest = list(blocks)
        while level == 2 and rest and isinstance(rest[0], Lead):
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
            case Verdict():
                return _verdict(block)
            case Tiles():
                return _tiles(block)
            case Bullets():
                return element("ul", {}, *(element("li", {}, item) for item in block.items))
            case Code():
                lines = (_flat(line) for line in block.lines)
                code = element("code", {}, joined(*lines, by="\n"))
                return element("pre", {"tabindex": "0"}, code)
            case Links():
                return _links(block)
            case Marked():
                return _marked(block)
            case Mount():
                return element("div", {"id": block.mount_id}, element("p", {}, block.without))
            case Beside():
                sides = (self._inside(side, level) for side in (block.left, block.right))
                return element("div", {"class": "beside"}, *(element("div", {}, *s) for s in sides))
            case Folded():
                summary = element("summary", {}, block.title)
                inside = self._inside(block.blocks, level)
                return element("details", {}, summary, joined(*inside, by="\n"))
            case Table():
                return self._folded(block) if block.is_folded else self._table(block)
            case Figure():
                return self._figure(block)
            case Section():
                return self._section(block, level)

    def _section(self, section: Section, level: int) -> Markup:
        name = section.anchor or f"section-{next(self._ids)}"
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
        for number, row in enumerate(table.rows):
            shades = table.shades[number] if table.shades else [None] * len(row)
            first, *rest = (
                (cell, _kind(column.is_number, cell, shade))
                for cell, column, shade in zip(row, table.columns, shades, strict=True)
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


def _verdict(verdict: Verdict) -> Markup:
    word = element("strong", {}, verdict.word)
    return element("p", {"class": f"verdict {verdict.tone}"}, word, " ", verdict.text)


def _tiles(tiles: Tiles) -> Markup:
    made = [
        element(
            "div",
            {},
            element("dt", {}, tile.label),
            element("dd", {"class": "figure"}, tile.value),
            *([element("dd", {}, tile.note)] if tile.note else []),
        )
        for tile in tiles.items
    ]
    return element("dl", {"class": "tiles"}, *made)


def _links(links: Links) -> Markup:
    made = [element("a", {"href": link.href}, link.text) for link in links.items]
    return element("p", {}, links.intro, " ", joined(*made, by=", "))


def _marked(marked: Marked) -> Markup:
    """Marks in colour and underlined, and a weight other than 1 in words before its piece."""
    pieces = [
        element("mark", {}, text if weight == 1 else f"{weight:g}: {text}") if weight else text
        for text, weight in marked.pieces
    ]
    box = element("pre", {"tabindex": "0", "class": "row"}, *pieces)
    return joined(element("p", {}, marked.note), box, by="\n")


def _breaking(title: str) -> Markup:
    """A title that may go on in the next line behind an underscore, as names have them."""
    head, *rest = title.split("_")
    parts = [joined("_", element("wbr", {}), part) for part in rest]
    return joined(head, *parts)


def _kind(is_number: bool, cell: str = "", shade: float | None = None) -> dict[str, str]:
    """The class of a cell: numbers stand to the right, a sentence needs room."""
    names = ["number"] if is_number else ["long"] if len(cell) > LONG_CELL else []
    if shade is not None:
        names.append(f"s{round(min(1.0, max(0.0, shade)) * NUM_SHADES)}")
    return {"class": " ".join(names)} if names else {}


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number:,} rows"


def _flat(line: str) -> str:
    return line.replace("\n", " ")
