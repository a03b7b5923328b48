"""From files to examples: rows -> Example, with every dropped row accounted for.

A row is `{"messages": [{"role", "content"}, ...]}`, ShareGPT's `{"conversations": [{"from",
"value"}, ...]}`, `{"instruction", "input"?, "output"}`, `{"prompt", "completion"}` or `{"input",
"output"}`; it may carry `system` and `topic`, and `columns` says what the file calls them. Exact
duplicates (over the whole conversation) and rows that hold an evaluation question are dropped; each
dropped row is listed with file, line and reason. Examples wait on disk with an index in memory, so
that a million of them fit. This file does not see scores and does not choose what to train on.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from errors import DataError
from rows.contamination import EvalTexts
from rows.examples import DropLog, DroppedRow, Example, ExampleTable, Message, Record, make_record
from rows.places import dropped_text, first_words
from rows.quality import Filters, near_duplicates
from rows.sources import Row, Source, as_text, is_text, read_rows, sha256_of
from rows.words import Words, cut, normalise, words_of

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {  # the names that ShareGPT files in the wild use
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
PAIRS = (("instruction", "output"), ("prompt", "completion"), ("input", "output"))
SHAPES = (
    '"messages", "conversations", "instruction"+"output", "prompt"+"completion" or "input"+"output"'
)
MAX_REJECTED_SHARE = 0.5  # a file that loses more of its rows to errors is probably the wrong file
MAX_REFUSALS = 20  # sources that a message explains,
MAX_GROUPS = 20  # kinds of problems that a message lists,
MAX_RANGES = 12  # and ranges of lines of each


# --- many rows, on disk ---------------------------------------------------------------------------


class LoadedFile(NamedTuple):
    """One source of rows, as it was read."""

    source: Source
    sha256: str
    num_rows: int


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
) -> LoadedData:
    """Read training rows; of rows with the same conversation, or nearly so, the first is kept.

    With `near_duplicates_from`, rows that are nearly one of those `beside` are dropped too.

    Raises `DataError`, with the lines of all problems, when a source cannot be read, holds no row,
    loses most rows to errors, or has a bad one and `on_bad_row` is stop.
    """
    examples, dropped, files, refusals = ExampleTable(), DropLog(), [], []
    first_at: dict[bytes, int] = {}
    for source in sources:
        num_rows, problems = 0, _Problems()
        for row in read_rows(source):
            num_rows += 1
            try:
                record = record_of(row, source.columns)
            except ValueError as error:
                reason = as_text(str(error))
                problems.add(row.line_no, reason)
                dropped.append(DroppedRow(source.name, row.line_no, "rejected", reason))
                continue
            position = first_at.setdefault(record.key, len(examples))
            if position < len(examples):
                reason = f"the same conversation as {_place(examples[position], source.name)}"
                dropped.append(DroppedRow(source.name, row.line_no, "duplicate", reason))
                continue
            flaw = None if filters is None else filters.flaw_of(record.messages)
            if flaw is not None:
                dropped.append(DroppedRow(source.name, row.line_no, *flaw))
                del first_at[record.key]
                continue
            examples.append(record, source.name, row.line_no)
        refusals += problems.refusals(source, num_rows, on_bad_row)
        files.append(LoadedFile(source, sha256_of(source), num_rows))
    if refusals:
        left = len(refusals) - MAX_REFUSALS
        more = f" And {left} more of the sources." if left > 0 else ""
        raise DataError(" ".join(refusals[:MAX_REFUSALS]) + more)
    if near_duplicates_from is not None:
        examples = _without_near_duplicates(examples, beside, near_duplicates_from, dropped)
    if not len(examples):
        raise DataError(f"{sources[0]}: the filters of `data` leave no row. Loosen them.")
    return LoadedData(tuple(files), examples, dropped)


def _without_near_duplicates(
    examples: ExampleTable, beside: Sequence[Example], threshold: float, dropped: DropLog
) -> ExampleTable:
    num_beside = len(beside)

    def row_at(position: int) -> Example:
        return beside[position] if position < num_beside else examples[position - num_beside]

    def words_at(position: int) -> Words:
        return words_of("\n".join(message.content for message in row_at(position).messages))

    gone: set[int] = set()
    number = num_beside + len(examples)
    for position, kept, similarity in near_duplicates(number, words_at, threshold):
        if position < num_beside:
            continue
        row, other = row_at(position), row_at(kept)
        reason = f"{similarity:.0%} like {_place(other, row.source)}"
        texts = (cut(one.messages[-1].content) for one in (row, other))
        dropped.append(DroppedRow(row.source, row.line_no, "near_duplicate", reason, *texts))
        gone.add(position - num_beside)
    return examples.take([one for one in range(len(examples)) if one not in gone])


def _place(row: Example, seen_from: str) -> str:
    place = f"line {row.line_no}"
    return place if row.source == seen_from else f"{place} of {row.source}"


class _Problems:
    """The bad rows of one source, by what is wrong with them."""

    def __init__(self) -> None:
        self._lines: dict[str, list[int]] = defaultdict(list)

    def add(self, line_no: int, reason: str) -> None:
        self._lines[reason].append(line_no)

    def refusals(self, source: Source, num_rows: int, on_bad_row: str) -> Iterator[str]:
        """Yield why the source cannot be used as it is."""
        if num_rows == 0:
            yield f"{source}: the file is empty. Give a file with one example per row."
        number = sum(map(len, self._lines.values()))
        if not number or (on_bad_row == "skip" and number <= MAX_REJECTED_SHARE * num_rows):
            return
        groups = sorted(self._lines.items(), key=lambda item: item[1][0])
        shown = "; ".join(f"{_ranges(lines)}: {reason}" for reason, lines in groups[:MAX_GROUPS])
        left = sum(len(lines) for _, lines in groups[MAX_GROUPS:])
        more = f"; and {left} more of other kinds" if left else ""
        what = (
            "Correct or remove them; with data.on_bad_row at skip, training rows are left out "
            "and listed."
            if number <= MAX_REJECTED_SHARE * num_rows
            else "Is it the right file? data.columns says what it calls its columns."
        )
        yield (
            f"{source}: {number} of {num_rows} rows cannot be used: {shown}{more}. Expected "
            f"{SHAPES}. {what}"
        )


def _ranges(lines: Sequence[int]) -> str:
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


def record_of(row: Row, columns: Mapping[str, str]) -> Record:
    """What a row trains on. Raises `ValueError` with the reason when it is not a training row."""
    if row.fields is None:
        raise ValueError(row.problem)
    fields = _renamed(row.fields, columns) if columns else row.fields
    return make_record(_messages_of(fields), _topic_of(fields.get("topic")))


def _topic_of(value: Any) -> str | None:
    """A topic by its name or its number."""
    if value in (None, ""):
        return None
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else _text(value, '"topic"')


def _renamed(fields: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Fields under our names: what is named comes first, and takes the place of what has its name;
    no other form of the row counts beside it."""
    named = {ours: fields[theirs] for ours, theirs in columns.items() if theirs in fields}
    others = {k: v for k, v in fields.items() if k not in columns.values() and k not in named}
    forms = [{"messages"}, {"conversations"}, *({*pair, "input"} for pair in PAIRS)]
    wanted = [form for form in forms if form & named.keys()]
    allowed = set().union(*wanted) if wanted else None
    of_forms = set().union(*forms)
    return named | {
        key: value
        for key, value in others.items()
        if allowed is None or key in allowed or key not in of_forms
    }


def _messages_of(fields: Mapping[str, Any]) -> tuple[Message, ...]:
    if fields.get("messages") is not None:
        return _with_system(fields, _checked(fields["messages"], "messages"))
    if fields.get("conversations") is not None:
        return _with_system(fields, _checked(fields["conversations"], "conversations"))
    pair = next((p for p in PAIRS if all(fields.get(k) is not None for k in p)), None)
    if pair is None:
        found = ", ".join(sorted(map(str, fields))[:8]) or "none"
        raise ValueError(f"expected {SHAPES}, found keys: {found}")
    asked, answered = (fields[key] for key in pair)
    if pair == ("prompt", "completion") and isinstance(asked, list) and isinstance(answered, list):
        return _with_system(fields, _checked([*asked, *answered], "prompt and completion"))
    question = _text(asked, f'"{pair[0]}"')
    if pair[0] == "instruction" and fields.get("input") not in (None, ""):
        question += "\n\n" + _text(fields["input"], '"input"')
    answer = _text(answered, f'"{pair[1]}"')
    return _with_system(fields, (Message("user", question), Message("assistant", answer)))


def _with_system(fields: Mapping[str, Any], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    system = fields.get("system")
    if system in (None, "") or messages[0].role == "system":
        return messages
    return (Message("system", _text(system, '"system"')), *messages)


def _checked(raw: Any, key: str) -> tuple[Message, ...]:
    if not isinstance(raw, list) or not raw:
        raise ValueError(f'"{key}" is not a list with at least one message')
    messages = []
    for index, item in enumerate(raw):
        if not isinstance(item, dict):
            raise ValueError(f"message {index} is not an object")
        if "role" in item or "from" not in item:
            role, content, known = item.get("role"), item.get("content"), ROLES
        else:
            role, content = item["from"], item.get("value")
            role = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
            known = tuple(SHAREGPT_ROLES)
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(f"message {index} has no role among {', '.join(known)}")
        messages.append(Message(role, _text(_joined(content), f"message {index}'s content")))
    if messages[-1].role != "assistant":
        raise ValueError("the last message is not the assistant's, so there is nothing to train on")
    if not any(message.role == "user" for message in messages):
        raise ValueError("there is no user message")
    return tuple(messages)


def _joined(content: Any) -> Any:
    """The text of a message that is written in parts; anything else as it is."""
    is_parts = isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    )
    return "".join(part["text"] for part in content) if is_parts else content


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is not a string")
    if not value.strip():
        raise ValueError(f"{what} is empty")
    if not is_text(value):
        raise ValueError(f"{what} holds a lone surrogate, which no tokenizer can encode")
    return value


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
            turns = [(message.role, message.content) for message in example.messages]
            hit = eval_texts.find_in(example.id, turns)
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
                words = first_words(example)
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
