"""From files to examples: rows -> Example, with every dropped row accounted for.

A row is `{"messages": [{"role", "content"}, ...]}`, ShareGPT's `{"conversations": [{"from",
"value"}, ...]}`, `{"instruction", "input"?, "output"}`, `{"prompt", "completion"}` or `{"input",
"output"}` (`rows/forms.py` has the rest), and `columns` says what the file calls them; where
preferences are trained, a row is a pair of answers (`rows/preferences.py`). Exact
duplicates (over the whole conversation) and rows that hold an evaluation question are dropped; each
dropped row is listed with file, line and reason. Examples wait on disk with an index in memory, so
that a million of them fit. This file does not see scores and does not choose what to train on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

from errors import DataError
from rows.contamination import EvalTexts
from rows.examples import DropLog, DroppedRow, Example, ExampleTable, Record
from rows.forms import Reading, read_form
from rows.other_answers import AskedPrompts, OtherAnswers
from rows.places import dropped_text, first_words
from rows.preferences import Aside, PairReader, Placed, opposites
from rows.quality import Filters, near_duplicates
from rows.refused_rows import FOUND_KEYS, Holds, Problems, columns_line
from rows.row_keys import PAIRS, QUESTION_KEYS
from rows.sources import Row, Source, as_text, read_rows, sha256_of
from rows.tool_calls import is_blank
from rows.units import units_of
from rows.words import Words, cut, normalise, words_of

PAIR_KEYS = ("prompt", "chosen", "rejected")
MAX_REFUSALS = 20  # sources that a message explains


# --- many rows, on disk ---------------------------------------------------------------------------


class LoadedFile(NamedTuple):
    """One source of rows, as it was read."""

    source: Source
    sha256: str
    num_rows: int
    unused: Mapping[str, int]  # keys that nothing uses, and how many rows have them


class LoadedData(NamedTuple):
    """The usable rows of one or several sources, in their order, and the others."""

    files: tuple[LoadedFile, ...]
    examples: ExampleTable
    dropped: DropLog

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)


# --- rows -> Example ------------------------------------------------------------------------------


def load_examples(
    sources: Sequence[Source],
    *,
    on_bad_row: Literal["stop", "skip"] = "skip",
    filters: Filters | None = None,
    near_duplicates_from: float | None = None,
    beside: Sequence[Example] = (),
    holds: Holds = "answers",
) -> LoadedData:
    """Read training rows; of rows with the same conversation, or nearly so, the first is kept.

    With `near_duplicates_from`, rows that are nearly one of those `beside` are dropped too. Rows
    that hold pairs are preferences, and those that prefer nothing are dropped; rows that hold
    prompts may have an answer or none.

    Raises `DataError`, with the lines of all problems, when a source cannot be read, holds no row,
    loses most rows to errors, or has a bad one and `on_bad_row` is stop.
    """
    examples, dropped, files, refusals = ExampleTable(), DropLog(), [], []
    first_at: dict[bytes, int] = {}
    for source in sources:
        problems, columns, unused = Problems(holds), _Columns(source), Counter[str]()
        for (record, not_used), line_no in _placed(source, problems, columns, dropped):
            unused.update(not_used)
            columns.placed(not_used)
            position = first_at.setdefault(record.key, len(examples))
            if position < len(examples):
                reason = f"the same conversation as {_place(examples[position], source.name)}"
                text = first_words(examples[position].messages)
                dropped.append(DroppedRow(source.name, line_no, "duplicate", reason, text))
                continue
            flaw = None if filters is None else _flaw_of(record, filters)
            if flaw is not None:
                dropped.append(DroppedRow(source.name, line_no, *flaw))
                del first_at[record.key]
                continue
            examples.append(record, source.name, line_no)
        num_rows = problems.num_rows
        of_columns = list(columns.refusals(num_rows - problems.number))
        refusals += of_columns or problems.refusals(source, on_bad_row, columns.found)
        files.append(LoadedFile(source, sha256_of(source), num_rows, dict(unused)))
    if refusals:
        left = len(refusals) - MAX_REFUSALS
        more = f" And {left} more of the sources." if left > 0 else ""
        raise DataError(" ".join(refusals[:MAX_REFUSALS]) + more)
    if holds == "pairs":
        examples = _without_opposites(examples, dropped)
    if near_duplicates_from is not None:
        examples = _without_near_duplicates(examples, beside, near_duplicates_from, dropped)
    if not len(examples):
        raise DataError(f"{sources[0]}: {_why_none(dropped)}")
    return LoadedData(tuple(files), examples, dropped)


def _placed(
    source: Source, problems: Problems, columns: _Columns, dropped: DropLog
) -> Iterator[Placed]:
    """Yield what the rows of a source come to; the others are counted and listed."""
    pairs = PairReader() if problems.holds == "pairs" else None
    may_ask = problems.holds == "prompts"
    for row in read_rows(source):
        problems.num_rows += 1
        columns.saw(row.fields or {})
        try:
            found = (
                Placed(read_row(row, source.columns, may_ask=may_ask), row.line_no)
                if pairs is None
                else _read_pair(row, source.columns, pairs)
            )
        except ValueError as error:
            reason = as_text(str(error))
            problems.add(row.line_no, reason)
            problems.num_unread += row.fields is None
            problems.num_asking += problems.holds == "answers" and _asks_alone(row, source.columns)
            dropped.append(DroppedRow(source.name, row.line_no, "rejected", reason))
            continue
        if isinstance(found, Placed):
            yield found
        elif found is not None:
            dropped.append(_set_aside(found, source.name))
    if pairs is not None:
        for one in pairs.left():
            dropped.append(_set_aside(one, source.name))


def _asks_alone(row: Row, columns: Mapping[str, str]) -> bool:
    """Whether a row that is no training row lacks nothing but an answer."""
    try:
        return read_row(row, columns, may_ask=True).record.messages[-1].role != "assistant"
    except ValueError:
        return False


def _read_pair(row: Row, columns: Mapping[str, str], pairs: PairReader) -> Placed | Aside | None:
    """What a row comes to; None where a pair waits for another row of it. Raises `ValueError`."""
    if row.fields is None:
        raise ValueError(row.problem)
    fields, left_out = _renamed(row.fields, columns, (*PAIRS, PAIR_KEYS))
    found = pairs.read(fields, row.line_no)
    if not isinstance(found, Placed):
        return found
    unused = {*found.reading.unused, *left_out}
    return Placed(found.reading._replace(unused=tuple(sorted(unused))), found.line_no)


def _why_none(dropped: DropLog) -> str:
    """What left no row of a source, and what to do."""
    kinds = ("tie", "opposite", "unpaired")
    num_ties, num_opposite, num_unpaired = (dropped.counts[kind] for kind in kinds)
    if not num_ties + num_opposite + num_unpaired:
        return "the filters of `data` leave no row. Loosen them."
    return (
        f"no pair is left: {num_ties} rows prefer neither answer, {num_opposite} stand the other "
        f"way round as well, and {num_unpaired} that mark one answer find none with the other mark "
        "and the same prompt. Give rows with a chosen and a rejected answer."
    )


def _set_aside(row: Aside, source: str) -> DroppedRow:
    return DroppedRow(source, row.line_no, row.kind, row.reason, row.text or None)


def _flaw_of(record: Record, filters: Filters) -> tuple[str, str, str] | None:
    """Kind and reason of a row that is filtered out, and what it asks first; of a pair each answer
    is looked at."""
    conversations = [record.messages]
    if record.rejected is not None:
        conversations.append((*record.messages[:-1], record.rejected))
    for messages in conversations:
        flaw = filters.flaw_of([(message.role, message.text) for message in messages])
        if flaw is not None:
            which = "" if messages is record.messages else "of its rejected answer: "
            return flaw.kind, f"{which}{flaw.reason}", first_words(messages)
    return None


def _without_opposites(examples: ExampleTable, dropped: DropLog) -> ExampleTable:
    """Without pairs whose answers stand the other way round as well: together they prefer none."""
    found = opposites(examples)
    for position, other in sorted(found.items()):
        row = examples[position]
        reason = f"{_place(examples[other], row.source)} prefers its answers the other way round"
        text = first_words(row.messages)
        dropped.append(DroppedRow(row.source, row.line_no, "opposite", reason, text))
    return examples.take([one for one in range(len(examples)) if one not in found])


def _without_near_duplicates(
    examples: ExampleTable, beside: Sequence[Example], threshold: float, dropped: DropLog
) -> ExampleTable:
    num_beside = len(beside)

    def row_at(position: int) -> Example:
        return beside[position] if position < num_beside else examples[position - num_beside]

    def words_at(position: int) -> Words:
        return words_of("\n".join(text for _, text in row_at(position).turns))

    gone: set[int] = set()
    number = num_beside + len(examples)
    for position, kept, similarity in near_duplicates(number, words_at, threshold):
        if position < num_beside:
            continue
        row, other = row_at(position), row_at(kept)
        reason = f"{similarity:.0%} like {_place(other, row.source)}"
        texts = (cut(one.messages[-1].text) for one in (row, other))
        dropped.append(DroppedRow(row.source, row.line_no, "near_duplicate", reason, *texts))
        gone.add(position - num_beside)
    return examples.take([one for one in range(len(examples)) if one not in gone])


def _place(row: Example, seen_from: str) -> str:
    place = f"line {row.line_no}"
    return place if row.source == seen_from else f"{place} of {row.source}"


def read_row(row: Row, columns: Mapping[str, str], *, may_ask: bool = False) -> Reading:
    """What a row trains on, or with `may_ask` asks alone. Raises `ValueError` with the reason when
    it is not a training row."""
    if row.fields is None:
        raise ValueError(row.problem)
    if not columns:
        return read_form(row.fields, may_ask=may_ask)
    fields, left_out = _renamed(row.fields, columns)
    try:
        record, unused = read_form(fields, may_ask=may_ask)
    except ValueError as error:
        blank = [f'"{name}"' for name in _needed(columns) if is_blank(row.fields.get(name))]
        is_of_it = FOUND_KEYS in str(error) or str(error).endswith('" is empty')
        if is_of_it and blank:
            are = "is" if len(blank) == 1 else "are"
            raise ValueError(f"{' and '.join(blank)} {are} missing or empty") from None
        raise
    return Reading(record, tuple(sorted({*unused, *left_out})))


def _needed(columns: Mapping[str, str]) -> list[str]:
    """Of the columns that are named, those without which a row is none: no topic, no context."""
    needed = {"messages", "conversations", *QUESTION_KEYS, *(key for pair in PAIRS for key in pair)}
    if "instruction" in columns or "prompt" in columns:
        needed.discard("input")  # which stands beside the question
    return [theirs for ours, theirs in columns.items() if ours in needed]


def _renamed(
    fields: Mapping[str, Any],
    columns: Mapping[str, str],
    pairs: Sequence[tuple[str, ...]] = PAIRS,
) -> tuple[dict[str, Any], list[str]]:
    """Fields under our names: what is named comes first, and takes the place of what has its name;
    no other form of the row counts beside it, and the keys of those are returned as left out."""
    named = {ours: fields[theirs] for ours, theirs in columns.items() if theirs in fields}
    others = {k: v for k, v in fields.items() if k not in columns.values()}
    forms = [{"messages"}, {"conversations"}, *({*pair, "input", "context"} for pair in pairs)]
    wanted = [form for form in forms if form & named.keys()]
    allowed = set().union(*wanted) if wanted else None
    of_forms = set().union(*forms)
    left_out = [
        key
        for key, value in others.items()
        if key in named or not (allowed is None or key in allowed or key not in of_forms)
        if not is_blank(value)
    ]
    kept = {k: v for k, v in others.items() if k not in left_out and k not in named}
    return named | kept, left_out


class _Columns:
    """Whether each column that `data.columns` names is there, and has a place in the rows."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._missing = set(source.columns.values())
        self._unplaced = set(source.columns)
        self.found: set[str] = set()

    def saw(self, fields: Mapping[str, Any]) -> None:
        if self._missing or not self.found:
            self.found |= fields.keys()
            self._missing -= fields.keys()

    def placed(self, unused: Sequence[str]) -> None:
        if self._unplaced:
            self._unplaced.intersection_update(unused)

    def refusals(self, num_usable: int) -> Iterator[str]:
        """Yield what of `data.columns` would do nothing, with the line to write instead."""
        columns, found = self._source.columns, ", ".join(sorted(map(str, self.found))[:12])
        if self._missing:
            theirs = min(self._missing)
            ours = next(key for key, value in columns.items() if value == theirs)
            fixed = {
                key: near[0]
                for key, value in columns.items()
                if (near := get_close_matches(value, self.found, 1))
            }
            line = f" Did you mean {columns_line(fixed)}?" if fixed != columns and fixed else ""
            yield (
                f"{self._source}: data.columns says that {ours!r} is called {theirs!r}, and no row "
                f"has that; the rows have {found}.{line}"
            )
        elif self._unplaced and num_usable:
            ours = min(self._unplaced)
            yield (
                f"{self._source}: data.columns names {ours!r} ({columns[ours]!r}), and the form of "
                f"the rows has no place for it beside {_others(columns, ours)}. Take it out, or "
                f'name the question "instruction" and the answer "output", which take an "input".'
            )


def _others(columns: Mapping[str, str], ours: str) -> str:
    return " and ".join(repr(key) for key in columns if key != ours) or "what it needs"


# --- what may be trained on -----------------------------------------------------------------------


class CleanSplit(NamedTuple):
    """Training and pool examples that hold no evaluation question and no row of each other."""

    train: ExampleTable
    pool: ExampleTable
    dropped: DropLog
    similar: DropLog  # trained on: near an evaluation question, or answered otherwise elsewhere
    other_answers: OtherAnswers = OtherAnswers()


def clean_split(train: ExampleTable, pool: ExampleTable, eval_texts: EvalTexts) -> CleanSplit:
    """Drop what is held out from both, and from the pool what `train_file` has already; list what
    is only similar, and what is asked twice and answered differently.

    Raises `DataError` when nothing is left to train on.
    """
    dropped, similar, asked = DropLog(), DropLog(), AskedPrompts(len(train) + len(pool))

    def keep(examples: ExampleTable, is_pool: bool) -> ExampleTable:
        kept = []
        for position, example in enumerate(examples):
            turns = example.turns
            units = [units_of(text) for _, text in turns]
            hit = eval_texts.find_in(example.id, turns, units)
            is_known = is_pool and example.id in train
            if hit is not None and not (is_known and hit.kind == "similar"):
                row = DroppedRow(
                    example.source, example.line_no, hit.kind, hit.reason, hit.text, hit.other
                )
                if hit.kind == "contaminated":
                    dropped.append(row)
                    continue
                similar.append(row)
            if is_known:
                reason = "the same conversation stands in train_file"
                words = first_words(example.messages)
                row = DroppedRow(example.source, example.line_no, "duplicate", reason, words)
                dropped.append(row)
                continue
            asked.add(position + is_pool * len(train), example, units)
            kept.append(position)
        return examples.take(kept)

    def row_at(position: int) -> Example:
        return train[position] if position < len(train) else pool[position - len(train)]

    kept_train, kept_pool = keep(train, is_pool=False), keep(pool, is_pool=True)
    if len(pool) and not len(kept_pool):
        raise DataError(
            f"{pool[0].source}: every row holds an evaluation question or stands in train_file, so "
            f"there is nothing to mine (the last is {dropped_text(dropped[-1])}). Use another "
            "mining.pool_file, or leave it out."
        )
    if not len(kept_train):
        raise DataError(
            f"{train[0].source}: every row holds an evaluation question, so nothing is left to "
            f"train on (the first is {dropped_text(dropped[0])}). Train on other rows than those "
            "that the evaluation asks."
        )
    other_answers, rows = asked.other_answers(row_at)
    for row in rows:
        similar.append(row)
    return CleanSplit(kept_train, kept_pool, dropped, similar, other_answers)


def split_validation(examples: ExampleTable, share: float) -> tuple[ExampleTable, ExampleTable]:
    """Divide rows into those to train on and those to hold out, by the content of each.

    The digest of the first question decides, so that a row stays where it is when others are added
    or taken away, and rows with the same question stay together. Raises `DataError` for a side
    without rows.
    """
    sides: tuple[list[int], list[int]] = [], []
    for position, example in enumerate(examples):
        asked = next(message.content for message in example.messages if message.role == "user")
        digest = hashlib.sha256(f"validation:{normalise(asked)}".encode()).digest()
        sides[int.from_bytes(digest[:8]) < share * 2**64].append(position)
    if not all(sides):
        raise DataError(
            f"data.val_share {share:g} leaves {len(sides[0])} of {len(examples)} rows to train on "
            f"and holds out {len(sides[1])}. Change it, or give more rows."
        )
    return examples.take(sides[0]), examples.take(sides[1])
