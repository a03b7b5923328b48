"""The labelled answers have the shape that benchmarks/graders.py counts on."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from conftest import REPO
from simple_eval import GRADERS

ROWS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (REPO / "benchmarks" / "graded_answers.jsonl").read_text("utf-8").splitlines()
]
FIELDS = {"kind": str, "grader": str, "gold": str, "answer": str, "right": bool, "source": str}


def test_every_row_has_the_fields_and_a_grader_of_ours() -> None:
    for row in ROWS:
        assert set(row) - {"note"} == set(FIELDS)
        assert all(isinstance(row[name], of) for name, of in FIELDS.items())
        assert row["grader"] in GRADERS


def test_there_are_three_hundred_different_answers_most_of_them_numeric() -> None:
    assert len(ROWS) == 300
    assert len({(row["grader"], row["gold"], row["answer"]) for row in ROWS}) == 300
    assert sum(row["grader"] == "numeric" for row in ROWS) >= 220


def test_every_kind_has_ten_answers_and_both_labels() -> None:
    labels = Counter((row["kind"], row["right"]) for row in ROWS)
    for kind in {row["kind"] for row in ROWS}:
        right, wrong = labels[kind, True], labels[kind, False]
        assert right + wrong >= 10 and min(right, wrong) >= 4


def test_at_least_half_come_from_elsewhere_and_say_from_where() -> None:
    elsewhere = [row["source"] for row in ROWS if row["source"] != "own"]
    assert len(elsewhere) >= 150
    # A repository with a number, or with a file at a commit and where it helps a line.
    assert all(
        "/" in source and ("#" in source or "@" in source or " " in source) for source in elsewhere
    )
