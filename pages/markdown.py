"""A document as Markdown (GitHub's), saying what the HTML page says; charts become their tables.

Nothing in a text acts as markup: what would is written with a backslash before it, and what would
still call somebody or link somewhere with a character of no width in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from errors import one_line
from pages.document import (
    Beside,
    Block,
    Bullets,
    Code,
    Document,
    Figure,
    Folded,
    Links,
    Marked,
    Mount,
    Paragraph,
    Section,
    Table,
    Tiles,
    Verdict,
)
from pages.markup import isolated

# Anywhere in a line. `_` inside of a word, a bracket without a target and `&` without a name are
# plain text, so that lora_rank, [0.25, 0.75] and R&D stay readable. `$` begins GitHub's formulas.
_ACTING = re.compile(
    r"""(?P<weights>tinker://(?:(?!://|www\.)[a-z0-9_.:/+-])+)  # is copied, so as it is
    | [\\`*<|~$]               # escapes, code, emphasis, HTML, cells, deleted text, formulas
    | (?<!\w)@ | @(?=[\w-]+\.\w)  # addresses; none is name@3, which has no domain
    | (?<![^\W_])_ | _(?![^\W_])  # emphasis at the edge of a word
    | \](?=[(\[:]) | \[(?=\^)     # links and what they point to, footnotes
    | &(?=\#?\w+;)                # character references
    | (?<!\S)\#                   # the end of a heading
    | :(?=//) | (?<=www)\.        # addresses that become links by themselves
    """,
    re.IGNORECASE | re.VERBOSE,
)
# What GitHub looks for in the text once its Markdown is read, so that a backslash does not help:
# who is told of it, issues and commits, of other repositories as well, and names of emoji.
_LINKED = re.compile(
    r"""(?P<weights>tinker://[a-z0-9_.:/+-]+)  # is copied from where it stands, so as it is
    | (?<![a-z0-9_])@(?=[a-z0-9]) | @(?=[0-9a-f]{7,40}\b)
    | \#(?=[0-9]) | (?<![a-z0-9_])GH-(?=[0-9])
    | :(?!\d\dz:)(?=(?:[a-z0-9_+-]*[a-z+-][a-z0-9_+-]*|100|1234):)  # but for times: 03:04:05Z:
    """,
    re.IGNORECASE | re.VERBOSE,
)
_NOTHING = "\u200b"  # takes no room, and ends a name
# At the start of a line: headings, lists, quotes, lines below headings, boxes to tick.
_ACTING_FIRST = re.compile(r"^([-+=>]|\[(?=[ xX]\])|\d{1,9}(?=[.)]))")


def markdown(document: Document) -> str:
    """The whole text, to be written to a file as it is."""
    lines = [f"# {inline(document.title)}", ""]
    for block in document.blocks:
        lines += _block(block, 2)
    return "\n".join(lines).rstrip("\n") + "\n"


def inline(text: str) -> str:
    """A text inside a line or a cell of a table."""
    unlinked = _LINKED.sub(_broken_off, one_line(text))
    return isolated(_ACTING.sub(_escaped, unlinked))


def code(text: str) -> str:
    """A text as code inside a line, between more backticks than it has side by side."""
    line = one_line(text)
    fence = "`" * (_longest_ticks([line]) + 1)
    room = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{room}{line}{room}{fence}"


def _longest_ticks(lines: Sequence[str]) -> int:
    return max((len(run) for line in lines for run in re.findall("`+", line)), default=0)


def _escaped(found: re.Match[str]) -> str:
    return found.group() if found["weights"] else f"\\{found.group()}"


def _broken_off(found: re.Match[str]) -> str:
    return found.group() if found["weights"] else f"{found.group()}{_NOTHING}"


def at_start(text: str) -> str:
    """A text that begins a line."""
    written = inline(text)
    return _ACTING_FIRST.sub(_shielded, written)


def _shielded(found: re.Match[str]) -> str:
    """`-` becomes `\\-`; of `1.` the point is shielded, as a digit cannot be."""
    mark = found.group()
    return f"{mark}\\" if mark.isdigit() else f"\\{mark}"


def _block(block: Block, level: int) -> Iterator[str]:
    match block:
        case Paragraph():
            text = at_start(block.text)
            yield from (f"**{text}**" if block.is_lead and text else text, "")
        case Verdict():
            yield from (at_start(f"{block.word} {block.text}"), "")
        case Tiles():
            for label, value, note in block.items:
                yield f"- {at_start(f'{label}: {value}')}{f' ({inline(note)})' if note else ''}"
            yield ""
        case Bullets():
            yield from (f"- {at_start(item)}" for item in block.items)
            yield ""
        case Code():
            yield from _code(block)
        case Links():
            names = ", ".join(f"{link.text} ({link.href})" for link in block.items)
            yield from (at_start(f"{block.intro} {names}"), "")
        case Marked():
            yield from (at_start(block.note), "")
            text = "".join(
                f"\u27e6{'' if one.weight == 1 else f'{one.weight:g}: '}{one.text}\u27e7"
                if one.weight
                else one.text
                for one in block.pieces
            )
            yield from _code(Code(text.split("\n")))
        case Mount():
            yield from (at_start(block.without), "")
        case Beside():
            for inside in (*block.left, *block.right):
                yield from _block(inside, level)
        case Folded():
            yield from (f"**{inline(block.title)}**", "")
            for inside in block.blocks:
                yield from _block(inside, level)
        case Table():
            yield from _table(block)
        case Figure():
            yield from (f"**{inline(block.title)}** {inline(block.description)}", "")
            yield from _table(block.numbers)
        case Section():
            yield from (f"{'#' * min(level, 6)} {inline(block.title)}", "")
            for inside in block.blocks:
                yield from _block(inside, level + 1)


def _code(code: Code) -> Iterator[str]:
    """Between fences that are longer than any in it."""
    lines = [one_line(line) for line in code.lines]
    fence = "`" * max(3, _longest_ticks(lines) + 1)
    yield from (fence, *lines, fence, "")


def _table(table: Table) -> Iterator[str]:
    yield from (at_start(table.whole_caption), "")
    yield row([column.title for column in table.columns])
    yield _row_of(["---:" if column.is_number else "---" for column in table.columns])
    yield from (row(cells) for cells in table.rows)
    yield ""


def row(cells: Sequence[str]) -> str:
    """A row of a table."""
    return _row_of([inline(cell) for cell in cells])


def _row_of(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
