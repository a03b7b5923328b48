"""`report.html`: a run on one page, written by the loop after each round and at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from errors import LoopError
from ledger.store import RunStore
from loop.run_page.account import environment_section, sealed_section, usage_section
from loop.run_page.answers import answers_of
from loop.run_page.checkpoints import checkpoints_sections, lead_of_evaluation
from loop.run_page.curves import curves_section
from loop.run_page.data import data_section
from loop.run_page.measures import measures_sections
from loop.run_page.opening import lead_of, next_section, sealed_text
from loop.run_page.rounds import rounds_section, score_figure, tasks_section
from loop.run_page.sampled import sampled_sections
from loop.run_page.selections import selections_section, shown_section
from loop.run_page.topics import topics_section
from loop.run_page.viewed import Viewed, viewed
from loop.run_page.words import words_section
from pages.document import Beside, Block, Document, Section
from pages.html import Behaviour, html_page

PAGE = "report.html"


def write_page(store: RunStore) -> None:
    """Write the page of a run that this process holds. Raises `StorageError`."""
    store.write_text(PAGE, page_of(viewed(store)))


def keep_page(store: RunStore) -> str | None:
    """Write the page of a run at work, which a page must never end.

    Returns a warning where it could not be made or written; the run does not depend on it.
    """
    try:
        write_page(store)
    except Exception as error:  # whatever it is, the run that was paid for goes on
        what = str(error) if isinstance(error, LoopError) else f"{type(error).__name__}: {error}"
        return (
            f"warning: {store.run_dir / PAGE} is not written, and the run goes on without: {what} "
            f"(report.py {store.run_dir} makes it again)"
        )
    return None


def page_of(view: Viewed, following: Behaviour | None = None) -> str:
    """The page as HTML. `following` is what a served page does beyond one that is opened from disk:
    its scripts, style and leave to connect are added."""
    answers = answers_of(view)
    is_evaluation = view.store.is_evaluation
    what, blocks_of = ("Evaluation", _of_evaluation) if is_evaluation else ("Run", _of_run)
    blocks = blocks_of(view, answers.section)
    own, more = answers.behaviour, following or Behaviour()
    behaviour = replace(
        own,
        scripts=[*own.scripts, *more.scripts],
        style=own.style + more.style,
        connects=more.connects,
    )
    return html_page(Document(f"{what} {view.config['run_name']}", list(blocks)), behaviour)


def _of_run(view: Viewed, answers: Section) -> Iterator[Block]:
    yield from lead_of(view)
    todo = next_section(view)
    yield Beside([score_figure(view)], [todo]) if view.store.results() else todo
    yield rounds_section(view)
    yield tasks_section(view)
    yield topics_section(view)
    yield from measures_sections(view)
    yield curves_section(view)
    yield from sampled_sections(view)
    yield selections_section(view)
    yield shown_section(view)
    yield data_section(view)
    yield sealed_section(view, sealed_text(view))
    yield usage_section(view)
    yield environment_section(view)
    yield words_section()
    yield answers  # the last: it is long, and would push away whatever followed


def _of_evaluation(view: Viewed, answers: Section) -> Iterator[Block]:
    yield from lead_of_evaluation(view)
    yield from checkpoints_sections(view)
    yield data_section(view)
    yield usage_section(view)
    yield environment_section(view)
    yield words_section()
    yield answers  # the last: it is long, and would push away whatever followed
