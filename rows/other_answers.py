"""Rows that ask the same and are answered differently: counted and listed, and trained on.

They may be meant (several good answers to one prompt) or be wrong labels, which only their author
knows. Two prompts are the same where all of their turns, system message and tools included, have
the same words and signs; case, spaces and the marks of a sentence aside. Two answers are the same
where they differ in case, spaces, a last full stop or their reasoning alone. Eight bytes a row wait
in memory; what shares them is read again and compared in full.
"""

from __future__ import annotations

import heapq
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from errors import one_line
from grading.reasoning import without_reasoning
from rows.examples import DroppedRow, Example
from rows.places import first_words
from rows.units import units_of
from rows.words import Words

KIND = "other_answer"  # of a row in the list of those that are trained on all the same
MAX_LISTED = 10_000  # rows; a file of many answers to each prompt would be listed whole
SHORT_WORDS = 5  # of two answers that are no longer at most one is right, as a rule
MAX_SHOWN = 60  # characters of an answer in a line

_SENTENCE_MARKS = re.compile(  # those of other scripts too; "#", "+" and the like are signs
    r"[\s.,:;!?'\"()\u2018\u2019\u201c\u201d\u2026\u2013\u2014\u00a1\u00ab\u00bb\u00bf"
    r"\u060c\u061b\u061f\u3001\u3002\u3008-\u3011\uff01\uff08\uff09\uff0c\uff0e\uff1a\uff1b\uff1f-]+"
)
_LAST_MARKS = ".!\u3002\uff01\uff0e"


class OtherAnswers(NamedTuple):
    """What was found in all rows."""

    num_prompts: int = 0  # that have more than one answer
    num_rows: int = 0  # that ask one of them
    num_short: int = 0  # of these rows, where no answer to the prompt has more than a few words


class _Prompt(NamedTuple):
    """A prompt with the first row of each of its answers; the order is the worst first."""

    is_long: bool
    minus_num_answers: int
    positions: tuple[int, ...]


class _Answers:
    """The answers of one prompt, by what they say."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.most_words = 0
        self.first: dict[int, int] = {}

    def add(self, position: int, answer: str) -> None:
        self.num_rows += 1
        self.most_words = max(self.most_words, len(answer.split()))
        self.first.setdefault(hash(answer), position)


class AskedPrompts:
    """What the rows of a table ask, as one number each, in the order of `add`."""

    def __init__(self) -> None:
        self._hashes, self._positions = array("q"), array("q")

    def add(self, position: int, example: Example, units: Sequence[Words]) -> None:
        """Take a row up; `units` are those of its turns, as `units_of` has them."""
        *before, answer = example.messages
        if answer.role != "assistant" or answer.weight == 0 or example.rejected is not None:
            return  # it answers nothing, or is a pair, which may be one of several of its prompt
        roles = [message.role for message in before]  # this is done a million times
        self._hashes.append(hash((example.tools, *roles, *units[: len(roles)])))
        self._positions.append(position)

    def other_answers(
        self, row_at: Callable[[int], Example]
    ) -> tuple[OtherAnswers, Iterator[DroppedRow]]:
        """Count the rows whose prompt has another answer too, and yield them, the worst first."""
        found, prompts = OtherAnswers(), []
        for positions in self._alike():
            asked: dict[int, _Answers] = {}
            for position in positions:
                row = row_at(position)
                asked.setdefault(hash(_prompt(row)), _Answers()).add(position, said(row))
            for one in asked.values():
                if len(one.first) > 1:
                    is_short = one.most_words <= SHORT_WORDS
                    found = OtherAnswers(
                        found.num_prompts + 1,
                        found.num_rows + one.num_rows,
                        found.num_short + is_short * one.num_rows,
                    )
                    firsts = tuple(one.first.values())[: MAX_LISTED + 1]
                    prompts.append(_Prompt(not is_short, -len(firsts), firsts))
        return found, _listed(heapq.nsmallest(MAX_LISTED, prompts), row_at)

    def _alike(self) -> Iterator[list[int]]:
        """Yield the positions of rows that share a number."""
        import numpy as np

        if not self._hashes:
            return
        hashes, positions = np.array(self._hashes), np.array(self._positions)
        order = np.argsort(hashes, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(hashes[order]) != 0])
        lengths = np.diff(np.r_[starts, len(order)])
        for start, length in zip(starts[lengths > 1], lengths[lengths > 1], strict=True):
            yield positions[order[start : start + length]].tolist()


def _listed(prompts: Sequence[_Prompt], row_at: Callable[[int], Example]) -> Iterator[DroppedRow]:
    number = 0
    for prompt in prompts:
        first = row_at(prompt.positions[0])
        for position in prompt.positions[1:]:
            if number == MAX_LISTED:
                return
            number += 1
            row = row_at(position)
            place = f"line {first.line_no}"
            place = place if row.source == first.source else f"{place} of {first.source}"
            reason = f"answers {_shown(row)}, and {place} answers {_shown(first)}"
            text = first_words(row.messages)
            yield DroppedRow(row.source, row.line_no, KIND, reason, text, _shown(first))


def _shown(row: Example) -> str:
    return repr(one_line(row.messages[-1].text, MAX_SHOWN))


def _prompt(row: Example) -> tuple[object, ...]:
    turns = ((one.role, same_words(one.text)) for one in row.messages[:-1])
    return (row.tools, *turns)


def said(row: Example) -> str:
    """What a row answers, reduced to what makes it another answer."""
    answer = row.messages[-1]
    calls = (f"{call.name} {call.arguments}" for call in answer.calls)
    content = without_reasoning(answer.content) or answer.content
    return "\n".join([same_answer(content), *calls])


def same_answer(text: str) -> str:
    """A text that is equal for answers that say the same."""
    return " ".join(text.casefold().split()).rstrip(_LAST_MARKS)


def same_words(text: str) -> str:
    """A text that is equal, among texts of the same units, for those that ask the same: "C++" and
    "C#" have the same units."""
    return _SENTENCE_MARKS.sub("", text.casefold())


def same_question(text: str) -> tuple[Words, str]:
    """What is equal for texts that ask the same, by themselves."""
    return units_of(text), same_words(text)
