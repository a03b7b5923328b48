"""`report.html`: a run on one page, written by the loop after each round and at the end."""

from __future__ import annotations

from dataclasses import replace

from ledger.store import RunStore
from loop.run_page.answers import answers_of
from loop.run_page.viewed import Viewed, viewed
from pages.document import Document, Paragraph
from pages.html import Behaviour, html_page

PAGE = "report.html"


def write_page(store: RunStore) -> None:
    """Write the page of a run that this process holds. Raises `StorageError`."""
    store.write_text(PAGE, page_of(viewed(store)))


def page_of(view: Viewed, following: Behaviour | None = None) -> str:
    """The page as HTML. `following` is what a served page does beyond one that is opened from disk:
    its scripts, style and leave to connect are added."""
    answers = answers_of(view)
    decision = view.store.last_decision()
    sentence = "No round has been decided yet." if decision is None else decision.sentence
    document = Document(
        f"Run {view.config['run_name']}", [Paragraph(sentence, is_lead=True), answers.section]
    )
    own, more = answers.behaviour, following or Behaviour()
    behaviour = replace(
        own,
        scripts=[*own.scripts, *more.scripts],
        style=own.style + more.style,
        connects=more.connects,
    )
    return html_page(document, behaviour)
