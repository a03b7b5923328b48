"""Questions and graders. Sampling itself is tested end to end in test_loop.py."""

import json
from pathlib import Path

import pytest

from errors import DataError
from simple_eval import GRADERS, SIMPLE_QA, load_questions, parse_number


@pytest.mark.parametrize(
    ("answer", "accepted", "is_right"),
    [
        ("4", "4", True),
        ("14", "4", False),
        ("4.5", "4", False),
        ("-4", "4", False),
        ("x = -4", "4", False),
        ("0.4", "4", False),
        ("1,004", "4", False),
        ("4th", "4", False),
        ("12:30", "12", False),
        ("40%", "40", False),
        ("It is 4.", "4", True),
        ("4, 5 or 6", "4", True),
        ("5+7=12", "12", True),
        ("7 days", "7", True),
        ("-12", "-12", True),
        ("The capital is TOKYO!", "Tokyo", True),
        ("Tokyoite", "Tokyo", False),
        ("New  York", "new york", True),
        ("\uff34okyo", "Tokyo", True),
        ("C++ is nice", "C++", True),
        ("", "4", False),
    ],
)
def test_includes_takes_whole_words_and_numbers(answer: str, accepted: str, is_right: bool) -> None:
    assert GRADERS["includes"](answer, [accepted]) == is_right


@pytest.mark.parametrize(
    ("answer", "accepted", "is_right"),
    [
        (" Tokyo. ", "tokyo", True),
        ("It is Tokyo", "Tokyo", False),
        ('"gray"', "gray", True),
        ("", "x", False),
    ],
)
def test_exact_takes_the_whole_answer(answer: str, accepted: str, is_right: bool) -> None:
    assert GRADERS["exact"](answer, [accepted]) == is_right


@pytest.mark.parametrize(
    ("answer", "accepted", "is_right"),
    [
        ("5 + 7 = 12", "12", True),
        ("12, or maybe 13", "12", False),
        ("about 1,234.50 dollars", "1234.5", True),
        ("it is -3.", "-3", True),
        ("it is -3.", "3", False),
        ("2e3", "2000", True),
        ("none", "0", False),
    ],
)
def test_numeric_takes_the_last_number(answer: str, accepted: str, is_right: bool) -> None:
    assert GRADERS["numeric"](answer, [accepted]) == is_right


def test_any_accepted_answer_counts() -> None:
    assert GRADERS["includes"]("It is grey.", ["gray", "grey"])


def test_numbers() -> None:
    assert [parse_number(t) for t in ("12", "-1.5", "1,000", "x", "1 2")] == [
        12,
        -1.5,
        1000,
        None,
        None,
    ]


def write(tmp_path: Path, *rows: object) -> Path:
    file = tmp_path / "q.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text("\n".join(lines))
    return file


def test_question_rows(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {"question": "a?", "answer": "1"},
        {"question": "b?", "answer": ["x", "y"], "topic": "t", "grader": "exact", "id": "own"},
    )
    first, second = load_questions("qa:q.jsonl", file).questions
    assert (first.topic, first.grader, first.answers) == (None, "includes", ("1",))
    assert len(first.id) == 16
    assert (second.id, second.topic, second.answers) == ("own", "t", ("x", "y"))


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ("{", "line 1: not valid JSON"),
        ({"question": "a?"}, '"answer" is not'),
        ({"question": "", "answer": "x"}, '"question" is missing'),
        ({"question": "a?", "answer": []}, '"answer" is not'),
        ({"question": "a?", "answer": ["x", 3]}, '"answer" is not'),
        ({"question": "a?", "answer": "x", "grader": "llm"}, "known are includes, exact, numeric"),
        ({"question": "a?", "answer": "x", "grader": "numeric"}, "not a number"),
        ({"question": "a?", "answer": "x", "topik": "t"}, "unknown key 'topik'"),
        ({"question": "a?", "answer": "x", "topic": ""}, "must be a non-empty string"),
        ({"question": "a?", "answer": "x", "grader": ["exact"]}, "known are includes"),
        ({"question": "a\ud800", "answer": "x"}, "lone surrogate"),
        ({"question": "a?", "answer": "x", "topic": "\ud800"}, "lone surrogate"),
    ],
)
def test_bad_questions_are_never_dropped_but_refused(
    tmp_path: Path, row: object, part: str
) -> None:
    with pytest.raises(DataError) as caught:
        load_questions("qa:q.jsonl", write(tmp_path, row, {"question": "ok?", "answer": "x"}))
    assert part in str(caught.value)


def test_a_question_that_stands_twice_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    twice = write(tmp_path, {"question": "a?", "answer": "1"}, {"question": "a?", "answer": "1"})
    with pytest.raises(DataError, match="stands twice"):
        load_questions("qa:q.jsonl", twice)
    with pytest.raises(DataError, match="holds no question"):
        load_questions("qa:q.jsonl", write(tmp_path, ""))


def test_built_in_questions_have_topics_and_enough_of_them() -> None:
    task = load_questions("simple_qa", SIMPLE_QA)
    assert len(task.questions) >= 100
    assert all(question.topic for question in task.questions)
