"""Graders: every case that a reader decided, hostile text, and how long it takes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import pytest

from conftest import IS_THOROUGH, REPO, thorough_only
from grading.final_values import number_alone
from grading.graders import GRADERS, problem_with
from grading.numbers import read, spans_in
from grading.reasoning import without_reasoning
from grading_table import Case, cases, table

CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=[f"{c.grader}-{c.kind}" for c in CASES])
def test_a_grader_judges_as_a_reader_does(case: Case) -> None:
    answer = without_reasoning(case.answer)
    is_right = answer is not None and GRADERS[case.grader](answer, [case.gold])
    assert is_right == case.right


def test_there_are_cases_of_each_grader_on_both_sides() -> None:
    counts = Counter((case.grader, case.right) for case in CASES)
    assert set(counts) == {(grader, right) for grader in GRADERS for right in (True, False)}
    assert min(counts.values()) >= 10 and len(CASES) >= 800


def test_the_page_shows_these_cases() -> None:
    """After a change: .venv/bin/python tests/grading_table.py"""
    page = (REPO / "docs" / "evaluation.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("<!-- made by tests/grading_table.py -->\n")
    assert rest.partition("\n<!-- end -->")[0] == table()


def test_any_accepted_answer_counts() -> None:
    assert GRADERS["includes"]("It is grey.", ["gray", "grey"])
    assert GRADERS["numeric"]("It is 3", ["2", "3"])


def value_alone(text: str) -> Fraction | None:
    number = number_alone(text)
    return None if number is None else number.value


def test_numbers_are_exact() -> None:
    assert [value_alone(text) for text in ("0.1", "-1.5", "1,000")] == [
        Fraction(1, 10),
        Fraction(-3, 2),
        1000,
    ]
    assert [value_alone(text) for text in (".5", "-.5", "$.5", "5.")] == [
        Fraction(1, 2),
        Fraction(-1, 2),
        Fraction(1, 2),
        5,
    ]
    assert value_alone("1" * 5000) == (10**5000 - 1) // 9
    assert value_alone("1e400") == 10**400
    assert value_alone("1e-400") == Fraction(1, 10**400)
    assert [value_alone(text) for text in ("x", "1 2", "10^10^10", "1/0", "3 of 4")] == [None] * 5


def test_where_a_number_stands() -> None:
    text = "It was -$1,234.50, or 5 % of it."
    first, second = (read(text, span) for span in spans_in(text))
    assert text[first.start : first.end] == "-$1,234.50"
    assert text[second.start : second.end] == "5 %"
    assert (first.value, first.currency, second.parts) == (Fraction(-2469, 2), "$", 100)


@pytest.mark.parametrize(
    "gold", ["$5", "50%", "5 km", "12 m^2", "1/2", "-5 °C", "USD 5", "½", "5元"]
)
def test_a_number_with_its_unit_can_be_a_gold_answer(gold: str) -> None:
    assert problem_with("numeric", gold) is None


@pytest.mark.parametrize(
    "gold", ["five", "3:30", "1.2.3", "2 + 3", "about 5", "1 of 3", "", "N/A", "1939-1945"]
)
def test_what_has_no_value_cannot(gold: str) -> None:
    assert problem_with("numeric", gold) == (
        f"{gold!r} is not a number, nor an expression that can be read"
    )


PIECES = [
    *"0123456789 .,-+/^*_%$()[]{}\\'\"\n:xeEkM#|<>&;~=",
    *("−", "–", "—", "½", "²", "₂", "٤", "巴", "한", "ก", "\u0301", "\u200b", "\ufdfa", "，"),  # noqa: RUF001
    *("\\frac{", "\\boxed{", "}", "\\text{", "**", "#### ", "answer is ", " million", "User:"),
    *("(mod 7)", "≡", "0x", "ff_{16}", "_2", "\\{"),
    *("<think>", "</think>", "&minus;", "€", "USD ", "&#1114112;", "&#55296;", "10^", "\\sqrt"),
    *("\ue000", "\ue001", "\ue002", "\ue010", "\ud800"),
]


def test_no_text_breaks_a_grader() -> None:
    chance = random.Random(7)

    def some(most: int) -> str:
        return "".join(chance.choice(PIECES) for _ in range(chance.randint(0, most)))

    for _ in range(3000):
        answer, gold = some(30), some(6)
        for grade in GRADERS.values():
            assert grade(without_reasoning(answer) or "", [gold, "5"]) in (True, False)
        number = number_alone(gold)
        if number is not None:  # what can be a gold answer is found in itself
            assert GRADERS["numeric"](gold, [gold]) or "answer" in gold or "\n" in gold


HOSTILE = """
import json, sys
from grading.graders import GRADERS
from grading.reasoning import without_reasoning

for text in json.load(sys.stdin):
    for grade in GRADERS.values():
        grade(without_reasoning(text * (100_000 // len(text))) or "", ["5", "a"])
"""
# Each was, or could be, read again from each of its places, which takes hours of such a text.
REPEATED = [
    *(
        "9",
        "1,",
        "1 ",
        "1.",
        "123 ",
        "123,\\!",
        "1{,}",
        "1\\,",
        "~",
        "1 or ",
        "1, 2 or ",
        "5 and ",
        "1'",
        ".5",
        "1+",
        "10^",
        "1e",
        "1e99999",
        "1 a ",
        "-1 a ",
    ),
    *("\\boxed{1}", "$x$ or ", "\\(", "\\[", "$$x", "\\text{,}", "√(", "x^{", "2\\pi+", "°"),
    *("\\frac{", "\\boxed{", "{", "}", "\\", "\\a", "$", "$1", "x_{", "10{,}", "(1)/"),
    *(
        "(mod ",
        "[\\text{ mod",
        "\\pmod{",
        "≡ 1, ",
        "0x",
        "0xf ",
        "ff_{",
        "f.f_(",
        "{1,",
        "{{},",
        "B-",
    ),
    *(
        "*",
        "*a",
        "(*a ",
        "-_a",
        "`",
        "~~a",
        "[",
        "[](/",
        "<",
        "<sup>",
        "#### 5\n",
        "1. a\n",
        "- a\n",
    ),
    *(
        " ",
        "\n",
        "-",
        "—",
        "½",
        "5²",
        "²",
        "٤",
        "ก",
        "a\u0301\u0323",
        "\u0301\u0323",
        "&#",
        "http://",
    ),
    *(
        "<think>",
        "</think>",
        "answer is 5 ",
        "5 = ",
        "\nUser: 5",
        "<|",
        "\n\nQ: 5",
        " million",
        "USD ",
    ),
]


@thorough_only
def test_long_answers_take_no_longer_than_their_length_says() -> None:
    """All of them in the time that a single one would go far beyond by its square."""
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE],
        input=json.dumps(REPEATED if IS_THOROUGH else REPEATED[::6]),
        cwd=REPO,
        timeout=280,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
