"""Reading pages and Markdown back: what they hold, and that nothing in them acts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

from pages.markup import VOID

SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """What a page holds; an end that does not match its start fails."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []  # the element that it stands in, and the text
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        assert len(given) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        at_wbr = bool(self.tags) and self.tags[-1][0] == "wbr"
        if at_wbr and self.open and self.texts[-1][0] == self.open[-1]:
            before = self.texts.pop()[1]  # one text, which may go on in the next line there
            data = before + data
        self.texts.append((self.open[-1] if self.open else "", data))

    def named(self, tag: str) -> list[dict[str, str]]:
        return [given for name, given in self.tags if name == tag]

    def text_of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def assert_inert(text: str) -> Page:
    """A whole page, well nested, without script, handlers or anything outside of it."""
    page = Page(text)
    assert not {"script", "iframe", "img", "link", "object", "form", "base"} & {
        tag for tag, _ in page.tags
    }
    for tag, given in page.tags:
        assert not [name for name in given if name.startswith("on") or name == "style"], tag
        for name in {"href", "src", "xlink:href", "action", "data"} & set(given):
            assert tag == "a" and given[name].startswith("#"), given
    ids = [given["id"] for _, given in page.tags if "id" in given]
    assert len(set(ids)) == len(ids)
    for _, given in page.tags:
        named = [given.get(k, "") for k in ("aria-labelledby", "aria-describedby")]
        named.append(given.get("href", "").removeprefix("#"))
        assert {name for name in named if name} <= set(ids)
    assert len(page.named("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    assert len(page.named("caption")) == len(page.named("table"))
    assert all(given["scope"] in ("col", "row") for given in page.named("th"))
    for drawn in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert_has_alternative(drawn)
    assert len(page.named("figure")) == len(page.named("svg"))
    assert len(page.named("details")) >= len(page.named("figure"))
    assert is_shown(text)
    return page


class Tables(HTMLParser):
    """The tables of a page: caption -> rows of cells, the titles first."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: dict[str, list[list[str]]] = {}
        self._caption: list[str] | None = None
        self._rows: list[list[str]] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._caption, self._rows = [], []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        if tag in ("caption", "td", "th", "tr", "table"):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.found["".join(self._caption or [])] = self._rows
        if tag in ("caption", "td", "th"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "caption" and self._caption is not None:
            self._caption.append(data)
        elif self._inside in ("td", "th"):
            self._rows[-1][-1] += data

    def named(self, start: str) -> list[list[str]]:
        """The rows of the only table whose caption begins so, without the titles."""
        (rows,) = [rows for caption, rows in self.found.items() if caption.startswith(start)]
        return rows[1:]


def is_shown(text: str) -> bool:
    """Whether a text has no character that cannot be seen, but for balanced marks around words."""
    inside = re.sub("\u2068([^\u2068\u2069]*)\u2069", r"\1", text)
    return all(c.isprintable() or c == "\n" for c in inside)


def assert_has_alternative(drawn: str) -> ElementTree.Element:
    """A drawing is well-formed, and says in words what it shows."""
    root = ElementTree.fromstring(drawn)
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    # A picture has no parts for a screen reader, so one with links is a group.
    has_links = root.find(f".//{SVG}a") is not None
    assert root.get("role") == ("group" if has_links else "img")
    assert title is not None and title.text and title.get("id") == root.get("aria-labelledby")
    assert description is not None and description.text
    assert description.get("id") == root.get("aria-describedby")
    return root


def tables_in(text: str) -> Iterator[list[list[str]]]:
    """The tables of a Markdown text as cells; every row of one has as many."""
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("| "):
            # A bar inside of a cell has a backslash before it.
            rows.append(line.removeprefix("| ").removesuffix(" |").split(" | "))
        elif rows:
            assert len({len(row) for row in rows}) == 1, rows
            yield rows
            rows = []


def outside_of_code(text: str) -> str:
    return re.sub(r"^(`{3,})\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
