"""The rows of a source that cannot be used, and the refusal of a source that loses too many."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

from rows.row_keys import (
    PAIR_SHAPES,
    PROMPT_SHAPES,
    QUESTION_KEYS,
    SHAPES,
    SYNONYMS,
    TO_ANSWER,
    asked_column,
    guess_columns,
)
from rows.sources import Source

Holds = Literal["answers", "pairs", "prompts"]  # what rows train on; prompts may be answered
EXPECTED: dict[Holds, str] = {
    "answers": SHAPES,
    "pairs": PAIR_SHAPES,
    "prompts": PROMPT_SHAPES,
}
PAIR_COLUMNS = {
    "prompt": "QUESTION_COLUMN",
    "chosen": "PREFERRED_COLUMN",
    "rejected": "OTHER_COLUMN",
}
MAX_REJECTED_SHARE = 0.5  # a file that loses more of its rows to errors is probably the wrong file
MAX_GROUPS = 20  # kinds of problems that a message lists,
MAX_RANGES = 12  # and ranges of lines of each
FOUND_KEYS = ", found keys: "  # what follows it in the reason of a row of no form are its keys
UNREADABLE = "not valid UTF-8"
SAVE_AS_UTF8 = "Save the file as UTF-8 (a spreadsheet calls it CSV UTF-8)."
RATED_KEYS = {"prompt", "response", "score"}
RATED = (
    "These are rated answers, which no method trains on as they are: some were wrong, and none has "
    "the log-probabilities of what wrote it, which a policy-gradient loss needs. registry.py "
    "feedback makes rows with right answers of them, and pairs for method dpo (docs/registry.md)."
)


class Problems:
    """The bad rows of one source, by what is wrong with them."""

    def __init__(self, holds: Holds) -> None:
        self.num_rows = 0  # bad or not
        self.num_asking = 0  # of the bad ones those that only lack an answer,
        self.num_unread = 0  # and those that could not be read at all
        self.holds: Holds = holds
        self._lines: dict[str, list[int]] = defaultdict(list)

    def add(self, line_no: int, reason: str) -> None:
        self._lines[reason].append(line_no)

    @property
    def number(self) -> int:
        return sum(map(len, self._lines.values()))

    def refusals(self, source: Source, on_bad_row: str, found: Collection[str]) -> Iterator[str]:
        """Yield why the source cannot be used as it is; `found` are the keys of its rows."""
        num_rows = self.num_rows
        if num_rows == 0:
            yield f"{source}: the file is empty. Give a file with one example per row."
        number = self.number
        if not number or (on_bad_row == "skip" and number <= MAX_REJECTED_SHARE * num_rows):
            return
        is_rated = set(found) >= RATED_KEYS and not any(TO_ANSWER in one for one in self._lines)
        if is_rated and number > MAX_REJECTED_SHARE * num_rows:
            yield f"{source}: {number} of {num_rows} rows cannot be used. {RATED}"
            return
        groups = sorted(self._kinds().items(), key=lambda item: item[1][0])
        shown = "; ".join(f"{lines_text(lines)}: {reason}" for reason, lines in groups[:MAX_GROUPS])
        left = sum(len(lines) for _, lines in groups[MAX_GROUPS:])
        more = f"; and {left} more of other kinds" if left else ""
        expected = f"Expected {EXPECTED[self.holds]}. "
        if number == num_rows and f"{EXPECTED[self.holds]}, found" in shown:
            expected = ""  # it has just been said
        if self.num_unread == number:
            expected = ""  # what they hold is not known
        what = (
            "Correct or remove them; with data.on_bad_row at skip, training rows are left out "
            "and listed."
            if number <= MAX_REJECTED_SHARE * num_rows
            else self._remedy(found)
        )
        yield (
            f"{source}: {number} of {num_rows} rows cannot be used: {shown}{more}. {expected}{what}"
        )

    def _remedy(self, found: Collection[str]) -> str:
        """What to do about a file that loses most of its rows."""
        if self.num_asking > MAX_REJECTED_SHARE * self.number:
            asked = next((key for key in QUESTION_KEYS if key in found), None)
            line = _line_for({"instruction": str(asked), "output": "ANSWER_COLUMN"})
            named = f" If a column has the answers, say so in the config, with its name: {line}."
            return (
                f"{self.num_asking} of them hold what is asked and no answer. Method sft trains on "
                "answers; rl, where a program judges the model's answers, and distill, where a "
                "teacher gives them, train on such rows (docs/methods.md)."
            ) + (named if asked is not None else "")
        if self.num_unread > MAX_REJECTED_SHARE * self.number:
            if UNREADABLE in self._lines:
                return SAVE_AS_UTF8
            return "Correct the file, or what writes it: each row is one object, or one record."
        is_text = self.holds != "prompts" and "text" in found
        if is_text and not {*QUESTION_KEYS, *SYNONYMS["output"]} & set(found):
            return (
                'A row of one "text" does not say what is asked and what is answered, and no '
                "method trains on it whole: give the two as keys of their own."
            )
        if not any("found keys" in reason for reason in self._lines):
            return "Correct or remove these rows."
        are_pairs = self.holds == "pairs"
        guess = {} if are_pairs else guess_columns(found)
        if self.holds == "prompts" and not guess:
            asked = asked_column(found)
            guess = {} if asked is None or asked in QUESTION_KEYS else {"prompt": asked}
            line = _line_for(guess or {"prompt": "QUESTION_COLUMN"})
            line = f"here probably {line}" if guess else f"with its name: {line}"
            return f"If it is the right file, say in the config what it calls its column, {line}."
        names = guess or {"instruction": "QUESTION_COLUMN", "output": "ANSWER_COLUMN"}
        if are_pairs:
            names = {key: name for key, name in PAIR_COLUMNS.items() if key not in found}
            names = names or PAIR_COLUMNS
        line = _line_for(names)
        line = f"here probably {line}" if guess else f"with names of these keys: {line}"
        remedy = f"If it is the right file, say in the config what it calls its columns, {line}."
        return f"{remedy} {SAVE_AS_UTF8}" if UNREADABLE in self._lines else remedy

    def _kinds(self) -> dict[str, list[int]]:
        """The lines of each problem; rows of no form are one, whichever of their keys are blank."""
        by_head: dict[str, list[str]] = defaultdict(list)
        for reason in self._lines:
            by_head[reason.partition(FOUND_KEYS)[0]].append(reason)
        kinds: dict[str, list[int]] = {}
        for head, reasons in by_head.items():
            if len(reasons) == 1:
                kinds[reasons[0]] = self._lines[reasons[0]]
                continue
            keys = {key for one in reasons for key in one.partition(FOUND_KEYS)[2].split(", ")}
            lines = sorted(line for one in reasons for line in self._lines[one])
            kinds[f"{head}{FOUND_KEYS}{', '.join(sorted(keys))} (not each in every row)"] = lines
        return kinds


def lines_text(lines: Sequence[int]) -> str:
    """Line numbers, those that follow each other drawn together."""
    ranges: list[list[int]] = []
    for line in lines:
        if ranges and line == ranges[-1][1] + 1:
            ranges[-1][1] = line
        else:
            ranges.append([line, line])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in ranges[:MAX_RANGES]]
    left = sum(b - a + 1 for a, b in ranges[MAX_RANGES:])
    more = f" and {left} more" if left else ""
    return f"line{'s' * (len(lines) > 1)} {', '.join(shown)}{more}"


def _line_for(columns: Mapping[str, str]) -> str:
    return f'"data": {{{columns_line(columns)}}}'


def columns_line(columns: Mapping[str, str]) -> str:
    return f'"columns": {json.dumps(dict(columns))}'
