"""Questions and graders. Sampling itself is tested end to end in test_loop.py."""

import hashlib
import json
from pathlib import Path

import pytest

from errors import DataError
from grading.graders import GRADERS
from simple_eval import SIMPLE_QA, load_questions


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
        ({"question": "a?", "answer": ["x", None]}, '"answer" is not'),
        ({"question": "a?", "answer": True}, '"answer" is not'),
        ({"question": "a?", "answer": "```"}, "nothing of '```' is left but marks"),
        ({"question": "a?", "answer": "3:30", "grader": "numeric"}, "'3:30' is not a number"),
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


CHAT = [
    {"role": "user", "content": "The capital of France?"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "And of Italy?"},
]


def test_a_question_may_have_a_system_prompt_and_a_conversation(tmp_path: Path) -> None:
    plain, told, chat, both, one = load_questions(
        "qa:q.jsonl",
        write(
            tmp_path,
            {"question": "And of Italy?", "answer": "Rome"},
            {"question": "And of Italy?", "answer": "Rome", "system": "Be brief."},
            {"messages": CHAT, "answer": "Rome"},
            {"messages": CHAT, "question": "And of Italy?", "system": "Hi.", "answer": "Rome"},
            {"messages": [{"role": "user", "content": "b?"}], "answer": "Rome"},
        ),
    ).questions
    assert [q.question for q in (plain, told, chat, both)] == ["And of Italy?"] * 4
    assert plain.turns == (("user", "And of Italy?"),)
    assert told.turns == (("system", "Be brief."), ("user", "And of Italy?"))
    assert [turn.role for turn in both.turns] == ["system", "user", "assistant", "user"]
    assert [q.line_no for q in (plain, told, chat, both, one)] == [1, 2, 3, 4, 5]
    # a question alone keeps the id that it always had; what else is asked makes another question
    assert plain.id == hashlib.sha256(b"And of Italy?").hexdigest()[:16]
    assert one.id == hashlib.sha256(b"b?").hexdigest()[:16]
    assert len({q.id for q in (plain, told, chat, both)}) == 4


def test_a_system_prompt_may_stand_in_the_messages_as_well(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *CHAT]
    row = {"messages": messages, "system": "Be brief.", "answer": "Rome"}
    (question,) = load_questions("qa:q.jsonl", write(tmp_path, row)).questions
    assert [turn.role for turn in question.turns] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"messages": []}, '"messages" is not a list with at least one'),
        ({"messages": "a?"}, '"messages" is not a list with at least one'),
        ({"messages": ["a?"]}, "message 0 is not an object"),
        ({"messages": [{"role": "user", "content": "a?", "name": "x"}]}, "message 0 is not"),
        ({"messages": [{"role": "tool", "content": "a?"}]}, "message 0 has the role 'tool'"),
        ({"messages": [{"role": "user", "content": " "}]}, "message 0's content is empty"),
        ({"messages": CHAT[:2]}, "the last message is not the user's"),
        ({"messages": CHAT, "question": "And of Spain?"}, "leave out one of them"),
        ({"messages": CHAT, "question": ""}, '"question" is missing, empty'),
        (
            {"messages": [{"role": "system", "content": "x"}, *CHAT], "system": "y"},
            '"system" and the system turn of "messages" differ',
        ),
        ({"question": "a?", "system": ""}, '"system" is empty'),
        ({"question": "a?", "category": "t"}, "unknown key 'category'; did you mean topic?"),
        ({"prompt": "a?"}, "unknown key 'prompt'; did you mean question?"),
        ({"question": "a?", "topik": "t"}, "unknown key 'topik'; did you mean topic?"),
        ({"question": "a?", "difficulty": 1}, "unknown key 'difficulty'; known are question,"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(
    tmp_path: Path, row: dict, part: str
) -> None:
    with pytest.raises(DataError, match=r"line 1: ") as caught:
        load_questions("qa:q.jsonl", write(tmp_path, {"answer": "x", **row}))
    assert part in str(caught.value)


def test_a_question_that_stands_twice_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    twice = write(tmp_path, {"question": "a?", "answer": "1"}, {"question": "a?", "answer": "1"})
    with pytest.raises(DataError, match="stands twice"):
        load_questions("qa:q.jsonl", twice)
    two = [{"question": q, "answer": "1", "id": 1} for q in ("a?", "b?")]
    with pytest.raises(DataError, match=r"line 2: 'b\?' has the id '1', which is that of 'a\?' in"):
        load_questions("qa:q.jsonl", write(tmp_path, *two))
    with pytest.raises(DataError, match="holds no question"):
        load_questions("qa:q.jsonl", write(tmp_path, ""))


def test_built_in_questions_have_topics_and_enough_of_them() -> None:
    task = load_questions("simple_qa", SIMPLE_QA)
    assert len(task.questions) >= 100
    assert all(question.topic for question in task.questions)
