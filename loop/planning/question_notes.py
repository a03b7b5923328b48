"""What is said of question files whose answers no model can satisfy, before anything is asked.

One question with two answers that exclude each other: at most one of the two samples can be right.
A list of answers as JSON text, as CSV files have it, and a worked solution that ends with its
answer are compared whole, and nothing says just that. None is refused: only the author knows what
is meant.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from errors import one_line
from evaluation.tasks import EvalTask
from grading.graders import GRADERS
from grading.math_process import NotJudged
from loop.planning.inputs import counted
from rows.other_answers import same_answer, same_question
from rows.tool_calls import number_of
from simple_eval import Question, QuestionTask

NUM_SHOWN = 3
MAX_SHOWN = 60  # characters of a text
SOLUTION_MARK = "\n####"  # before the answer of a worked solution, as GSM8K has it


class _Place(NamedTuple):
    task: str
    question: Question
    is_sealed: bool


def describe_questions(
    tasks: Sequence[EvalTask], test_tasks: Sequence[EvalTask] = ()
) -> Iterator[str]:
    """Yield a warning for each kind of answer that makes a score lower than it should be."""
    places = [
        _Place(task.name, question, is_sealed)
        for of, is_sealed in ((tasks, False), (test_tasks, True))
        for task in of
        if isinstance(task.work, QuestionTask)
        for question in task.work.questions
    ]
    yield from _describe_contradictions(places)
    yield from _describe_compared_whole(
        places,
        _is_listed_text,
        "hold a list as text, which is compared as it stands; in a JSON file it is a list of "
        "accepted answers",
    )
    yield from _describe_compared_whole(
        places,
        lambda answer: SOLUTION_MARK in answer,
        "hold a worked solution, which is compared as a whole; keep what stands after ####",
    )


def _describe_contradictions(places: Sequence[_Place]) -> Iterator[str]:
    asked: dict[object, list[_Place]] = defaultdict(list)
    for place in places:
        one = place.question
        turns = tuple((turn.role, same_question(turn.content)) for turn in one.turns)
        asked[one.grader, turns].append(place)
    found = [pair for alike in asked.values() if (pair := _excluding(alike)) is not None]
    if found:
        shown = "; ".join(_pair_text(*pair) for pair in found[:NUM_SHOWN])
        more = f"; and {len(found) - NUM_SHOWN} more" if len(found) > NUM_SHOWN else ""
        yield (
            f"warning: {counted(len(found), 'question')} of the evaluations "
            f"{'is' if len(found) == 1 else 'are'} asked twice with answers that exclude each "
            f"other, so that at most one of the two can be right: {shown}{more}. Correct one, or "
            'give all accepted answers of a question as a list in one "answer".'
        )


def _excluding(alike: Sequence[_Place]) -> tuple[_Place, _Place] | None:
    """The first two of the same questions that no one answer satisfies."""
    for number, place in enumerate(alike):
        for other in alike[:number]:
            if _exclude_each_other(place.question, other.question):
                return other, place
    return None


def _exclude_each_other(one: Question, other: Question) -> bool:
    """Whether no accepted answer of the one is right for the other, by their own grader where it is
    built in: it may take "1,000" for "1000", or find a short answer in a long one."""
    if not _accepted(one).isdisjoint(_accepted(other)):
        return False
    is_right = GRADERS.get(one.grader)
    if is_right is None:
        return True
    sides = ((one.answers, other.answers), (other.answers, one.answers))
    try:
        return not any(is_right(answer, right) for answers, right in sides for answer in answers)
    except NotJudged:
        return False  # it is not known, and only what is known is told


def _accepted(question: Question) -> set[object]:
    return {
        same_answer(answer) if (number := number_of(answer)) is None else number
        for answer in question.answers
    }


def _pair_text(first: _Place, second: _Place) -> str:
    """Two places; of a sealed test no text."""
    places = " and ".join(f"{one.task} line {one.question.line_no}" for one in (first, second))
    if first.is_sealed or second.is_sealed:
        return places
    asked, *answers = (
        repr(one_line(text, MAX_SHOWN))
        for text in (first.question.question, first.question.answers[0], second.question.answers[0])
    )
    return f"{places} ({asked}: {' and '.join(answers)})"


def _describe_compared_whole(
    places: Sequence[_Place], is_so: Callable[[str], bool], what: str
) -> Iterator[str]:
    """Yield a warning where answers for the built-in graders of texts are more than an answer."""
    found = [
        place
        for place in places
        if place.question.grader in ("includes", "exact")
        and any(is_so(answer) for answer in place.question.answers)
    ]
    if found:
        first = found[0]
        yield (
            f"warning: the answers of {counted(len(found), 'question')} {what} (the first is "
            f"{first.task} line {first.question.line_no})."
        )


def _is_listed_text(answer: str) -> bool:
    if not answer.lstrip().startswith("["):
        return False
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, list) and all(isinstance(one, str | int | float) for one in value)
