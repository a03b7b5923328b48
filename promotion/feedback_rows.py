"""Rows of a production log, rated or corrected, read into what they say; no row is half understood.

A row is `{"prompt", "response"?, "score"?, "correction"?, "topic"?, "id"?, "time"?, "model"? or
"checkpoint"?}`. A value that cannot be meant refuses the whole file with its line: the 1 of a scale
of five stars would be taken for a right answer, and only its neighbours show that it is none.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from errors import DataError, one_line
from rows.examples import Message, make_record
from rows.forms import read_form
from rows.refused_rows import lines_text
from rows.row_keys import CONTEXT_KEYS, REFUSED, SYSTEM_KEYS, TO_ANSWER
from rows.sources import Source, as_text, read_rows
from rows.tool_calls import TOOL_KEYS, decoded, is_blank, number_of, text_of

COLUMNS = (
    *("prompt", "response", "score", "correction", "topic", "id", "time", "model", "checkpoint"),
)
OTHER_NAMES = {  # what other programs call it -> what it is called here
    **dict.fromkeys(
        ("question", "query", "instruction", "input", "messages", "request", "user"), "prompt"
    ),
    **dict.fromkeys(
        ("answer", "completion", "output", "reply", "assistant", "generation", "prediction"),
        "response",
    ),
    **dict.fromkeys(
        ("rating", "feedback", "reward", "thumb", "thumbs", "vote", "liked", "reaction"), "score"
    ),
    **dict.fromkeys(
        ("corrected", "corrected_response", "corrected_answer", "correct_answer", "correct",
         "corrections", "expected", "expected_output", "ideal", "gold"),
        "correction",
    ),
    **dict.fromkeys(("category", "subject"), "topic"),
}  # fmt: skip
ENDS = ("user", "tool")  # who speaks before an answer
MEANT = ("prompt", "response", "score", "correction", "topic")  # others may be anybody's
IN_CONTEXT = (*SYSTEM_KEYS, *CONTEXT_KEYS, "history", *TOOL_KEYS)
UP = (
    *("up", "thumbs up", "thumb up", "thumbsup", "like", "liked", "good", "positive", "true"),
    *("yes", "right", "correct", ":+1:", "\U0001f44d"),
)
DOWN = (
    *("down", "thumbs down", "thumb down", "thumbsdown", "dislike", "disliked", "bad", "negative"),
    *("false", "no", "wrong", "incorrect", ":-1:", "\U0001f44e"),
)
_WORDS = {**dict.fromkeys(UP, 1.0), **dict.fromkeys(DOWN, 0.0)}
_SKIN_AND_FORM = re.compile("[\ufe0f\U0001f3fb-\U0001f3ff]")  # what emoji carry behind them
MAX_PROBLEMS = 10
MAX_SHOWN = 60


class Prompt(NamedTuple):
    """What was asked: as the file has it, and as messages, by which it is told from others."""

    key: bytes
    given: Any  # a text, or a list of messages
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Rated:
    """What one row says of an answer."""

    line_no: int
    entry: str  # `registry:NAME@N`
    prompt: Prompt
    response: str | None = None
    score: float | None = None  # from 0 to 1
    correction: str | None = None
    topic: str | None = None
    id: str | None = None
    time: str | None = None

    @property
    def answers(self) -> tuple[str, ...]:
        """The response and what it was corrected to, as far as there are any."""
        return tuple(one for one in (self.response, self.correction) if one is not None)


class RatedFile(NamedTuple):
    """The rows of a file in their order, and how many have a key that nothing uses."""

    rows: list[Rated]
    unused: Mapping[str, int]


def read_feedback(source: Source, entry_of: Callable[[str], str | None], usual: str) -> RatedFile:
    """Read all rows; those that name no entry are of the `usual` one.

    `entry_of` says which entry a row names, None for the usual one, and raises `ValueError` for
    what it does not know. Raises `DataError` with the lines of all problems.
    """
    rows: list[Rated] = []
    problems: dict[str, list[int]] = defaultdict(list)
    unused: dict[str, int] = defaultdict(int)
    num_rows = 0
    for row in read_rows(source):
        num_rows += 1
        try:
            if row.fields is None:
                raise ValueError(row.problem)
            for key in unknown_columns(row.fields):
                unused[key] += 1
            rows.append(_read(row.line_no, row.fields, entry_of, usual))
        except ValueError as error:
            problems[as_text(str(error))].append(row.line_no)
    if problems:
        shown = [f"{lines_text(lines)}: {said}" for said, lines in problems.items()]
        left = len(shown) - MAX_PROBLEMS
        more = f"; and {left} more of other kinds" if left > 0 else ""
        number = sum(map(len, problems.values()))
        raise DataError(
            f"{source}: {number} of {num_rows} rows cannot be understood: "
            f"{'; '.join(shown[:MAX_PROBLEMS])}{more}. Nothing was taken: correct these rows or "
            'take them out. A row has "prompt", and "response" with "score" (0 to 1, true or '
            'false, thumbs up or down) or "correction".'
        )
    if not rows:
        raise DataError(f"{source}: the file holds no row. Give one rated answer per line.")
    return RatedFile(rows, dict(unused))


def unknown_columns(fields: Mapping[str, Any]) -> list[str]:
    """The keys that nothing here uses. Raises `ValueError` for one that is a known one misspelt,
    or that changes what is asked."""
    given = {key for key, value in fields.items() if not is_blank(value)}
    unknown = [key for key in fields if key in given and key not in (*COLUMNS, TO_ANSWER)]
    for key in unknown:
        meant = _meant(key)
        if meant is not None and meant not in given:
            called = one_line(as_text(str(key)), MAX_SHOWN)
            raise ValueError(f'"{called}" is no column here; did you mean "{meant}"?')
        if key in IN_CONTEXT:
            raise ValueError(
                f'"{key}" changes what is asked; write "prompt" as the list of messages that the '
                "model was given, system message included, and leave it out"
            )
        if key in REFUSED:
            raise ValueError(f'"{key}": {REFUSED[key]}')
    return unknown


def _meant(key: str) -> str | None:
    """The column that a key was meant to be."""
    folded = re.sub(r"[\s_-]+", "_", str(key).strip().casefold())
    if folded in (*MEANT, *OTHER_NAMES):
        return OTHER_NAMES.get(folded, folded)
    near = difflib.get_close_matches(folded, MEANT, 1, cutoff=0.8)
    return near[0] if near else None


def _read(
    line_no: int, fields: Mapping[str, Any], entry_of: Callable[[str], str | None], usual: str
) -> Rated:
    given = {key: value for key, value in fields.items() if not is_blank(value)}
    if "prompt" not in given:
        raise ValueError('there is no "prompt"')
    response, correction = (
        text_of(given[key], f'"{key}"') if key in given else None
        for key in ("response", "correction")
    )
    score = score_of(given["score"]) if "score" in given else None
    if response is None and score:
        raise ValueError('"score" is of a "response", and there is none')
    prompt, topic = _prompt(given["prompt"], given.get("topic"))
    named = {_entry(key, given[key], entry_of) for key in ("model", "checkpoint") if key in given}
    named = {one or usual for one in named}
    if len(named) > 1:
        raise ValueError('"model" and "checkpoint" name two entries')
    return Rated(
        line_no,
        next(iter(named), usual),
        prompt,
        response,
        score,
        correction,
        topic,
        *(_label(key, given.get(key)) for key in ("id", "time")),
    )


def _prompt(given: Any, topic: Any) -> tuple[Prompt, str | None]:
    """What is asked, read as training rows are, which is what it becomes."""
    read = decoded(given)
    is_messages = isinstance(read, list) and all(isinstance(one, dict) for one in read)
    given = read if is_messages else given
    fields = {"prompt": given, "completion": "answer"}
    record = read_form(fields if topic is None else {**fields, "topic": topic}).record
    messages = record.messages[:-1]
    if not any(one.role == "user" for one in messages) or messages[-1].role not in ENDS:
        raise ValueError('"prompt" does not end with what a user or a tool says')
    return Prompt(prompt_key(messages), given, messages), record.topic


def prompt_key(messages: Sequence[Message]) -> bytes:
    """What prompts are the same by: all that is said in them, whatever of it is trained."""
    return make_record(tuple(one._replace(weight=None) for one in messages), None).key


def _entry(key: str, value: Any, entry_of: Callable[[str], str | None]) -> str | None:
    try:
        return entry_of(text_of(value, f'"{key}"').strip())
    except ValueError as error:
        raise ValueError(f'"{key}": {error}') from None


def _label(key: str, value: Any) -> str | None:
    """An id or a time, kept as it is for looking the row up."""
    if value is None:
        return None
    if isinstance(value, dict | list):
        raise ValueError(f'"{key}" is neither a text nor a number')
    text = str(value)
    return as_text(text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}...")


def score_of(value: Any) -> float:
    """A score from 0 to 1. Raises `ValueError` for anything else."""
    number: float | None = None
    if isinstance(value, str):
        said = _SKIN_AND_FORM.sub("", value).strip().casefold()
        words = re.sub(r"[\s_:-]+", " ", said).strip()
        number = _WORDS.get(said, _WORDS.get(words, number_of(said)))
    elif isinstance(value, bool | int | float):
        number = float(value) if abs(value) <= 1 else None  # an integer may be of any size
    if number is None or not 0 <= number <= 1:
        raise ValueError(
            f'"score" is {_shown(value)}, none of 0 to 1, true or false, thumbs up or down '
            "(-1 and 1, stars and percent have to be brought to 0 to 1 first)"
        )
    return number


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "a number of too many digits"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
