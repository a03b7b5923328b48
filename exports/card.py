"""The card of an export, `README.md`: what it is, what it was measured to do, and what not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from exports.check import Check
from exports.served_template import ServedTemplate
from exports.source import Source


class HowTo(Protocol):
    """A way to use an export: a heading, some sentences, and lines to be typed."""

    @property
    def title(self) -> str: ...

    @property
    def text(self) -> str: ...

    @property
    def commands(self) -> Sequence[str]: ...


def card_of(
    source: Source,
    format: str,
    template: ServedTemplate | None,
    sections: Sequence[HowTo],
    checks: Sequence[Check],
    notes: Sequence[str] = (),
) -> str:
    """The card in Markdown, with the front matter that Hugging Face reads.

    `notes` are sentences on how it was made (which merge, what was folded, which dtype).
    """
    raise NotImplementedError
