"""The questions of an evaluation, read into what rows are compared by, and the measures of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rows.units import is_unspaced, read_units
from rows.words import Words

# Lengths are in words; of questions in scripts without spaces the same number twice, in characters.
MIN_LONG = 20  # shorter near copies are as often another question as the same one
MAX_CHANGED_SHARE = 0.2  # of the words of the longer text, in a near copy


@dataclass(frozen=True)
class EvalText:
    """A question that must not be trained on.

    `others` are further texts of it (a conversation's turns) that rows are listed for sharing a
    long run with. Questions of one `cluster` are variants of each other.
    """

    task: str
    question: str
    others: tuple[str, ...] = ()
    cluster: str | None = None
    only_same: bool = False  # no rule but the same question: rows of a split are like one another


class Question(NamedTuple):
    """A question as it is looked for; `scale` is 2 where characters are compared, else 1."""

    text: EvalText
    units: Words
    content: Words
    scale: int

    @property
    def is_long(self) -> bool:
        return len(self.units) >= MIN_LONG * self.scale

    @property
    def variants(self) -> object:
        """What stands for a question and its variants."""
        text = self.text
        return self.units or text.others if text.cluster is None else (text.task, text.cluster)


def read_question(text: EvalText) -> Question:
    units, content = read_units(text.question)
    return Question(text, units, content, scale_of(units))


def scale_of(units: Words) -> int:
    """What lengths are multiplied by."""
    return 2 if is_unspaced(units) else 1


def near_lengths(length: int) -> range:
    """How many units a near copy of a question of so many can have."""
    shortest = length - int(MAX_CHANGED_SHARE * length)
    return range(shortest, int(length / (1 - MAX_CHANGED_SHARE)) + 1)
