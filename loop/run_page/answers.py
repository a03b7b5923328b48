"""The page's part on questions and answers: each round's samples, to be filtered and compared."""

from __future__ import annotations

from typing import NamedTuple

from loop.run_page.viewed import Viewed
from pages.document import Mount, Section
from pages.html import Behaviour

ANSWERS = "answers"  # the section's id, and what its links begin with


class Answers(NamedTuple):
    section: Section
    behaviour: Behaviour


def answers_at(round_no: int) -> str:
    """A link to the answers of a round."""
    return f"#{ANSWERS}/{round_no}"


def answers_of(view: Viewed) -> Answers:
    """The section, and what makes it work."""
    files = f"They are in {view.store.run_dir.name}/evals/, a file for each round."
    section = Section("Questions and answers", [Mount("browser", files)], anchor=ANSWERS)
    return Answers(section, Behaviour())
