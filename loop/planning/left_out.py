"""Which rows are left out or only listed: how many, why, and where; said, and written by a dry run.

A run writes the same lists into its directory.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loop.planning.inputs import Inputs, counted, num_dropped
from rows.contamination import NEAR_RULES
from rows.examples import DropLog, DroppedRow
from rows.other_answers import SHORT_WORDS
from rows.places import DROPPED, SIMILAR, dropped_text, row_lines
from scores.wording import share_text
from storage.files import write_whole

LARGE_SHARE = 0.1  # of a file: when more of it goes, this is said before anything else
NUM_REASONS = 3
NUMBERS = "\0"  # stands for any number in reasons that are alike; the first one is shown whole
NUM_SHOWN = 3
MANY_NEAR = 5  # different rows that one question drops: it may be a template, and they no copies
# What is wrong with rows, after a number of them: one or many.
REASONS = {
    "duplicate": "already in the files",
    "near_duplicate": "nearly like another row",
    "opposite": "standing the other way round as well",
}
ASKING = {
    "asks": "asking",
    "asks, small words aside,": "asking, small words aside,",
    "holds": "holding",
    NEAR_RULES[0]: "nearly asking",
    NEAR_RULES[1]: "holding nearly all of",
}


def describe_large_losses(inputs: Inputs) -> Iterator[str]:
    """Yield a line for each file of which more than a tenth goes, with the commonest reasons."""
    sizes = {
        file.source.name: file.num_rows for data in inputs.files.values() for file in data.files
    }
    total = sum(num_dropped(inputs.drop_logs).values())
    if total <= LARGE_SHARE * min(sizes.values(), default=0):
        return  # the logs of large files need not be read
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    wordings: dict[str, str] = {}
    for row in itertools.chain.from_iterable(inputs.drop_logs):
        alike = _reason_of(row)
        reasons[row.file][alike] += 1
        wordings.setdefault(alike, REASONS.get(row.kind) or f"({row.reason})")
    for name, number in sizes.items():
        num_gone = reasons[name].total()
        if num_gone > LARGE_SHARE * number:
            commonest = reasons[name].most_common()
            # A last reason is told in the place of "other reasons".
            num_shown = NUM_REASONS + (len(commonest) == NUM_REASONS + 1)
            shown = "; ".join(
                f"{count} {wordings[reason] if NUMBERS in reason else reason}"
                for reason, count in commonest[:num_shown]
            )
            others = sum(count for _, count in commonest[num_shown:])
            more = f"; and {others} for other reasons" if others else ""
            yield (
                f"warning: {num_gone} of the {number} rows of {name} are left out "
                f"({share_text(num_gone, number)}): {shown}{more}"
            )


def describe_left_out(inputs: Inputs) -> Iterator[str]:
    """Yield the lines about dropped and similar rows, the first of them with their places."""
    dropped, listed = num_dropped(inputs.drop_logs), inputs.split.similar
    if dropped:
        counts = ", ".join(f"{number} {kind}" for kind, number in sorted(dropped.items()))
        yield f"dropped rows: {counts} ({DROPPED} has each, with file, line and reason)"
        yield from _first(inputs.drop_logs)
    yield from _many_near(inputs.split.dropped)
    if number := listed.counts["similar"]:
        yield (
            f"similar rows: {number}, trained on: they are only similar to what an evaluation asks "
            f"({SIMILAR} has each)"
        )
        yield from _first([listed[: min(number, NUM_SHOWN)]])  # they stand before the others
    yield from _describe_other_answers(inputs)


def worst_other_answers(inputs: Inputs) -> list[DroppedRow]:
    """The first of the rows whose prompt has another answer, the worst before the others."""
    listed = inputs.split.similar
    begin = listed.counts["similar"]
    return list(listed[begin : begin + NUM_SHOWN])


def _describe_other_answers(inputs: Inputs) -> Iterator[str]:
    """Yield the lines about rows that answer one prompt differently, where answers are learnt."""
    found = inputs.split.other_answers
    if not found.num_rows or inputs.config.method == "distill":
        return
    total = len(inputs.split.train) + len(inputs.split.pool)
    short = f"; {found.num_short} of them in {SHORT_WORDS} words or less" if found.num_short else ""
    yield (
        f"other answers: {found.num_rows} rows ({share_text(found.num_rows, total)}) ask "
        f"{counted(found.num_prompts, 'prompt')} that other rows answer differently{short}. All "
        "are trained on: keep them where several answers are right, and correct or take out those "
        f"that are wrong ({SIMILAR} has their places, the worst first)"
    )
    yield from _first([worst_other_answers(inputs)])


def other_answers_facts(inputs: Inputs) -> dict[str, Any]:
    """The same as named values."""
    found = inputs.split.other_answers
    total = len(inputs.split.train) + len(inputs.split.pool)
    return {
        **found._asdict(),
        "share": found.num_rows / total if total else None,
        "worst": [
            {"file": row.file, "line_no": row.line_no, "text": row.text, "reason": row.reason}
            for row in worst_other_answers(inputs)
        ],
    }


def write_lists(folder: Path, dropped: Sequence[DropLog], similar: DropLog) -> list[Path]:
    """Write both lists into a folder, as a run has them. Raises `StorageError`."""
    lists = {DROPPED: itertools.chain.from_iterable(dropped), SIMILAR: similar}
    for name, rows in lists.items():
        write_whole(folder / name, row_lines(rows))
    return [folder / name for name in lists]


def _first(logs: Sequence[Sequence[DroppedRow]]) -> Iterator[str]:
    rows = itertools.chain.from_iterable(logs)
    return (f"  {dropped_text(row)}" for row in itertools.islice(rows, NUM_SHOWN))


def _reason_of(row: DroppedRow) -> str:
    """The reason without what is the row's own."""
    rule, is_question, _ = row.reason.partition(" the question ")
    if row.kind == "contaminated" and is_question:
        return f"{ASKING.get(rule, rule)} an evaluation question"
    return REASONS.get(row.kind) or f"({re.sub(r'[0-9]+', NUMBERS, row.reason)})"


def _many_near(dropped: DropLog) -> Iterator[str]:
    """Yield a line for each question that many different rows are nearly like."""
    if not dropped.counts["contaminated"]:
        return
    places: dict[str, dict[str, DroppedRow]] = defaultdict(dict)
    for row in dropped:
        if row.reason.startswith(NEAR_RULES) and row.text is not None:
            places[row.other or ""].setdefault(row.text, row)
    for question, rows in places.items():
        if len(rows) >= MANY_NEAR:
            first = next(iter(rows.values()))
            yield (
                f"warning: {len(rows)} different rows are left out as near copies of the one "
                f"question {question[:80]!r}, the first {first.file} line {first.line_no}: if "
                "they ask something else, set data.contamination to list"
            )
