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
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

from errors import DataError
from rows.contamination import EvalTexts
from rows.examples import DropLog, DroppedRow, Example, ExampleTable, Record
from rows.forms import Reading, guess_columns, read_form
from rows.places import dropped_text, first_words
from rows.preferences import Aside, PairReader, Placed, opposites
from rows.quality import Filters, near_duplicates
from rows.row_keys import PAIR_SHAPES, PAIRS, PROMPT_SHAPES, SHAPES
from rows.sources import Row, Source, as_text, read_rows, sha256_of
from rows.tool_calls import is_blank
from rows.words import Words, cut, normalise, words_of

Holds = Literal["answers", "pairs", "prompts"]  # what rows train on; prompts may be answered
EXPECTED: dict[Holds, str] = {
    "answers": SHAPES,
    "pairs": PAIR_SHAPES,
    "prompts": PROMPT_SHAPES,
}
PAIR_KEYS = ("prompt", "chosen", "rejected")
PAIR_COLUMNS = {
    "prompt": "QUESTION_COLUMN",
    "chosen": "PREFERRED_COLUMN",
    "rejected": "OTHER_COLUMN",
}
MAX_REJECTED_SHARE = 0.5  # a file that loses more of its rows to errors is probably the wrong file
MAX_REFUSALS = 20  # sources that a message explains,
MAX_GROUPS = 20  # kinds of problems that a message lists,
MAX_RANGES = 12  # and ranges of lines of each
FOUND_KEYS = ", found keys: "  # what follows it in the reason of a row of no form are its keys
RATED_KEYS = {"prompt", "response", "score"}
RATED = (
    "These are rated answers, which no method trains on as they are: some were wrong, and none has "
    "the log-probabilities of what wrote it, which a policy-gradient loss needs. registry.py "
    "feedback makes rows with right answers of them, and pairs for method dpo (docs/registry.md)."
)


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
        problems, columns, unused = _Problems(holds), _Columns(source), Counter[str]()
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
    source: Source, problems: _Problems, columns: _Columns, dropped: DropLog
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
            dropped.append(DroppedRow(source.name, row.line_no, "rejected", reason))
            continue
        if isinstance(found, Placed):
            yield found
        elif found is not None:
            dropped.append(_set_aside(found, source.name))
    if pairs is not None:
        for one in pairs.left():
            dropped.append(_set_aside(one, source.name))


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


class _Problems:
    """The bad rows of one source, by what is wrong with them."""

    def __init__(self, holds: Holds) -> None:
        self.num_rows = 0  # bad or not
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
        groups = sorted(self._kinds().items(), key=lambda item: item[1][0])
        shown = "; ".join(f"{lines_text(lines)}: {reason}" for reason, lines in groups[:MAX_GROUPS])
        left = sum(len(lines) for _, lines in groups[MAX_GROUPS:])
        more = f"; and {left} more of other kinds" if left else ""
        are_pairs = self.holds == "pairs"
        guess = {} if are_pairs else guess_columns(found)
        names = guess or {"instruction": "QUESTION_COLUMN", "output": "ANSWER_COLUMN"}
        if are_pairs:
            names = {key: name for key, name in PAIR_COLUMNS.items() if key not in found}
            names = names or PAIR_COLUMNS
        line = f'"data": {{{_columns_line(names)}}}'
        line = f"here probably {line}" if guess else f"with names of these keys: {line}"
        expected = f"Expected {EXPECTED[self.holds]}. "
        if number == num_rows and len(groups) == 1 and f"{EXPECTED[self.holds]}, found" in shown:
            expected = ""  # it has just been said
        what = (
            "Correct or remove them; with data.on_bad_row at skip, training rows are left out "
            "and listed."
            if number <= MAX_REJECTED_SHARE * num_rows
            else RATED
            if set(found) >= RATED_KEYS
            else f"If it is the right file, say in the config what it calls its columns, {line}."
        )
        yield (
            f"{source}: {number} of {num_rows} rows cannot be used: {shown}{more}. {expected}{what}"
        )

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
        blank = [theirs for theirs in columns.values() if is_blank(row.fields.get(theirs))]
        is_of_it = FOUND_KEYS in str(error) or str(error).endswith('" is empty')
        if is_of_it and len(blank) == 1:
            raise ValueError(f'"{blank[0]}" is missing or empty') from None
        raise
    return Reading(record, tuple(sorted({*unused, *left_out})))


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
            line = f" Did you mean {_columns_line(fixed)}?" if fixed != columns and fixed else ""
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


def _columns_line(columns: Mapping[str, str]) -> str:
    return f'"columns": {json.dumps(dict(columns))}'


# --- what may be trained on -----------------------------------------------------------------------


class CleanSplit(NamedTuple):
    """Training and pool examples that hold no evaluation question and no row of each other."""

    train: ExampleTable
    pool: ExampleTable
    dropped: DropLog
    similar: DropLog  # rows that are near an evaluation question, and trained on


def clean_split(train: ExampleTable, pool: ExampleTable, eval_texts: EvalTexts) -> CleanSplit:
    """Drop what is held out from both, and from the pool what `train_file` has already; list what
    is only similar.

    Raises `DataError` when nothing is left to train on.
    """
    dropped, similar = DropLog(), DropLog()

    def keep(examples: ExampleTable, is_pool: bool) -> ExampleTable:
        kept = []
        for position, example in enumerate(examples):
            hit = eval_texts.find_in(example.id, example.turns)
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
            kept.append(position)
        return examples.take(kept)

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
    return CleanSplit(kept_train, kept_pool, dropped, similar)


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
