"""The table of what each grader takes for right, made of the cases that the tests hold it to.

.venv/bin/python tests/grading_table.py
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import NamedTuple

CASES = Path(__file__).with_name("grading_cases.jsonl")
NUM_SHOWN = 4  # of each kind, right ones and others
LONGEST = 34
NOT_SHOWN = "others"  # a kind


class Case(NamedTuple):
    """An answer, and whether a reader takes it for the gold one."""

    grader: str
    kind: str
    gold: str
    answer: str
    right: bool

    @property
    def can_be_shown(self) -> bool:
        is_plain = all(char.isprintable() and char not in "`|" for char in self.answer + self.gold)
        return is_plain and 0 < len(self.answer) <= LONGEST

    @property
    def shown(self) -> str:
        verb = {True: "is", False: "is not"}[self.right]
        if self.grader == "includes":
            verb = {True: "has", False: "has not"}[self.right]
        return f"`{self.answer}` {verb} `{self.gold}`"


def cases() -> list[Case]:
    lines = CASES.read_text(encoding="utf-8").splitlines()
    return [Case(**json.loads(line)) for line in lines]


def table() -> str:
    """Markdown: the first cases of each kind that fit on a line."""
    rows = ["| `grader` | kind | right | not right |", "|---|---|---|---|"]
    groups = itertools.groupby(cases(), key=lambda case: (case.grader, case.kind))
    for (grader, kind), group in groups:
        if kind == NOT_SHOWN:
            continue
        shown = [case for case in group if case.can_be_shown]
        right, wrong = _first(shown, is_right=True), _first(shown, is_right=False)
        if right or wrong:
            rows.append(f"| `{grader}` | {kind} | {right} | {wrong} |")
    return "\n".join(rows)


def _first(shown: list[Case], *, is_right: bool) -> str:
    by_answer = {case.answer: case for case in shown if case.right == is_right}
    return "; ".join(case.shown for case in list(by_answer.values())[:NUM_SHOWN])


if __name__ == "__main__":
    print(table())
