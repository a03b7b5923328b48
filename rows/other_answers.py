"""Rows that ask the same and are answered differently: counted and listed, and trained on.

They may be meant (several good answers to one prompt) or be wrong labels, which only their author
knows. Two prompts are the same where all of their turns, system message and tools included, have
the same words and signs; case, spaces and the marks of a sentence aside. Two answers are the same
where they differ in case, spaces, a last full stop or their reasoning alone. Eight bytes a row wait
in memory; what shares them is read again and compared in full, and nothing else is.
"""

from __future__ import annotations

import heapq
import itertools
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
CHUNK_ROWS = 2**16  # whose numbers are looked up at once

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
        self.are_short = True
        self.first: dict[int, int] = {}

    def add(self, position: int, answer: str) -> None:
        self.num_rows += 1
        self.are_short = self.are_short and len(answer.split(None, SHORT_WORDS)) <= SHORT_WORDS
        self.first.setdefault(hash(answer), position)


class AskedPrompts:
    """What each of so many rows asks, as one number; zero for those that are not compared."""

    def __init__(self, num_rows: int) -> None:
        self._numbers = array("q", bytes(8 * num_rows))

    def add(self, position: int, example: Example, units: Sequence[Words]) -> None:
        """Take a row up; `units` are those of its turns, as `units_of` has them."""
        messages = example.messages
        answer = messages[-1]
        if answer.role != "assistant" or answer.weight == 0 or example.rejected is not None:
            return  # it answers nothing, or is a pair, which may be one of several of its prompt
        asked = (example.tools, *[one.role for one in messages], *units[: len(messages) - 1])
        self._numbers[position] = hash(asked) or 1

    def other_answers(
        self, row_at: Callable[[int], Example]
    ) -> tuple[OtherAnswers, Iterator[DroppedRow]]:
        """Count the rows whose prompt has another answer too, and yield them, the worst first."""
        found, prompts = OtherAnswers(), []
        for positions in self._alike():
            for one in _answered_otherwise(positions, row_at):
                found = OtherAnswers(
                    found.num_prompts + 1,
                    found.num_rows + one.num_rows,
                    found.num_short + one.are_short * one.num_rows,
                )
                firsts = tuple(one.first.values())[: MAX_LISTED + 1]
                prompts.append(_Prompt(not one.are_short, -len(firsts), firsts))
            if len(prompts) > 2 * MAX_LISTED:  # of those that will not be listed none is kept
                prompts = heapq.nsmallest(MAX_LISTED, prompts)
        return found, _listed(heapq.nsmallest(MAX_LISTED, prompts), row_at)

    def _alike(self) -> Iterator[list[int]]:
        """Yield the positions of rows that share a number; nine bytes a row for a moment."""
        import numpy as np

        numbers = np.frombuffer(self._numbers, dtype=np.int64)
        in_order = np.sort(numbers)
        shared = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
        del in_order
        if not len(shared := shared[shared != 0]):
            return
        positions = np.concatenate(
            [
                start + np.flatnonzero(np.isin(numbers[start : start + CHUNK_ROWS], shared))
                for start in range(0, len(numbers), CHUNK_ROWS)
            ]
        )
        of_shared = numbers[positions]
        order = np.argsort(of_shared, kind="stable")
        starts = np.flatnonzero(np.diff(of_shared[order])) + 1
        for start, end in itertools.pairwise([0, *starts.tolist(), len(order)]):
            yield positions[order[start:end]].tolist()


def _answered_otherwise(
    positions: Sequence[int], row_at: Callable[[int], Example]
) -> Iterator[_Answers]:
    """Yield the answers of each prompt of these rows that has more than one."""
    asked: dict[int, _Answers] = {}
    same: dict[tuple[object, ...], _Answers] = {}  # by the very texts, which are most often equal
    for position in positions:
        row = row_at(position)
        before = (row.tools, *[(one.role, one.text) for one in row.messages[:-1]])
        if before not in same:
            same[before] = asked.setdefault(hash(_prompt(row)), _Answers())
        same[before].add(position, said(row))
    return (one for one in asked.values() if len(one.first) > 1)


def _listed(prompts: Sequence[_Prompt], row_at: Callable[[int], Example]) -> Iterator[DroppedRow]:
    number = 0
    for prompt in prompts:
        first = row_at(prompt.positions[0])
        shown_first = _shown(first)
        for position in prompt.positions[1:]:
            if number == MAX_LISTED:
                return
            number += 1
            row = row_at(position)
            place = f"line {first.line_no}"
            place = place if row.source == first.source else f"{place} of {first.source}"
            reason = f"answers {_shown(row)}, and {place} answers {shown_first}"
            text = first_words(row.messages)
            yield DroppedRow(row.source, row.line_no, KIND, reason, text, shown_first)


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
