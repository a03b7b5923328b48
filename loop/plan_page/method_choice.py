"""Which method the rows are for, by their form, and what it costs to choose it.

The first rows of each source of `train_file` are looked at, also where no method could be trained
on them: this is asked before the settings are right. What only the user knows, such as whether a
program can tell a good answer, is said as a condition and never assumed.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from config_schema import LoadedConfig, TrainingConfig
from data_loader import read_row
from errors import ConfigError, DataError
from loop.plan_page.view import Part, Planned, RowsForm
from loop.planning.row_files import sources_of
from pages.document import Column, Table
from rows.forms import given_of, marks_of
from rows.refused_rows import RATED_KEYS
from rows.row_keys import OTHER_PREFERENCE_KEYS, SYNONYMS, guess_columns
from rows.sources import Row, read_rows
from rows.tool_calls import decoded, is_blank
from settings.method_groups import MethodName

NUM_LOOKED_AT = 1000  # rows of each source
RARE = 0.1  # a form that fewer rows than this share have is one of bad rows
SHORT_WORDS = 5  # an answer of no more words can be compared by a program

IN_PAIRS = ("chosen", "rejected", "comparison", *OTHER_PREFERENCE_KEYS)

TRADE_OFFS: Mapping[MethodName, str] = {
    "sft": "learns most from each token that is paid for; it learns the rows' faults as well, and "
    "nothing of what they do not show",
    "dpo": "learns which of two answers is better, without a reward; it teaches no new answers and "
    "may lower the better one's likelihood too, so it starts from an sft checkpoint",
    "rl": "learns from what the model says itself, and needs no good answers; each prompt is "
    "answered group_size times, which is most of the bill, and what the reward can be tricked "
    "with is found",
    "distill": "gets one judgement a token where rl gets one an answer, and is usually the cheaper "
    "of the two; the student comes at most near its teacher, which has to share its tokenizer",
}
FEEDBACK = (
    "registry.py feedback NAME FILE makes rows with right answers of them, and pairs for method dpo"
)
WITH_ANSWERS = (
    "a row needs an answer: write what a reward may compare with, or - where it compares with none"
)


class Choice(NamedTuple):
    """A method for rows of a form. `method` None: none takes them as they are, and `instead` says
    what to do first."""

    method: MethodName | None
    why: str
    instead: str | None = None


class Alternative(NamedTuple):
    """Another method that the same rows can serve."""

    method: MethodName
    when: str
    trade_off: str


# --- the form of rows -----------------------------------------------------------------------------


def form_of_rows(loaded: LoadedConfig) -> RowsForm:
    """Look at the first rows of `train_file`. What cannot be read is said, and refused by whoever
    reads all of it."""
    forms, num_short = Counter[str](), 0
    try:
        for source in sources_of(loaded, "train_file", loaded.config.train_file):
            for row in itertools.islice(read_rows(source), NUM_LOOKED_AT):
                form, is_short = _form_of(row, source.columns)
                forms[form] += 1
                num_short += is_short
    except (ConfigError, DataError) as error:
        return RowsForm("unknown", dict(forms), 0, str(error))
    return RowsForm(_common(forms), dict(forms), num_short)


def _common(forms: Counter[str]) -> str:
    """The one form of a file; marks make pairs only where some answers are disliked."""
    if set(forms) <= {"chats", "liked"}:
        return "chats" if forms else "unknown"
    told = Counter[str]()
    for form, number in forms.items():
        told["marked" if form in ("liked", "disliked") else form] += number
    often = [form for form, number in told.items() if number >= RARE * told.total()]
    if len(often) > 1:
        return "mixed"
    return often[0] if often else "unknown"


def _form_of(row: Row, columns: Mapping[str, str]) -> tuple[str, bool]:
    """The form of one row, and whether its answer is short."""
    if row.fields is None:
        return "unknown", False
    fields = {**row.fields, **{a: row.fields[b] for a, b in columns.items() if b in row.fields}}
    given = given_of(fields)
    if set(given) >= RATED_KEYS:
        return "ratings", False
    if any(not is_blank(fields.get(key)) for key in IN_PAIRS):
        return "pairs", False
    try:
        marks = set(marks_of(given).values())
    except ValueError:
        marks = set()
    if marks:
        return "liked" if marks == {True} else "disliked", False
    try:
        answer = read_row(row, columns).record.messages[-1]
    except ValueError:
        return _unread_form(given), False
    return "chats", len(answer.text.split()) <= SHORT_WORDS


def _unread_form(given: Mapping[str, Any]) -> str:
    """What a row is that no method could be trained on as it is."""
    if guess_columns(given.keys()):
        return "chats"  # under other names, which the refusal tells how to give
    messages = next((decoded(given[k]) for k in ("messages", "conversations") if k in given), None)
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        role = messages[-1].get("role", messages[-1].get("from"))
        return "prompts" if role in ("user", "human") else "unknown"
    is_asked = any(isinstance(given.get(key), str) for key in SYNONYMS["instruction"])
    is_answered = any(key in given for key in SYNONYMS["output"])
    return "prompts" if is_asked and not is_answered else "unknown"


# --- the method -----------------------------------------------------------------------------------


def choice_of(form: str, config: TrainingConfig) -> Choice:
    """The method that rows of a form are for. A teacher or a reward that the settings name counts
    before the rows, which are then no more than prompts."""
    if config.distill is not None and form in ("chats", "marked", "prompts"):
        what = f"a teacher is named ({config.distill.teacher}), and the rows are its prompts"
        return Choice("distill", what, WITH_ANSWERS if form == "prompts" else None)
    if config.rl is not None and form in ("chats", "marked", "prompts"):
        named = config.rl.environment or config.rl.reward
        what = f"a program gives the rewards ({named}), and the rows are its prompts"
        return Choice("rl", what, WITH_ANSWERS if form == "prompts" else None)
    return _BY_FORM[form]


_BY_FORM: Mapping[str, Choice] = {
    "chats": Choice("sft", "the rows are questions or chats with the answers that are wanted"),
    "pairs": Choice("dpo", "the rows say of two answers to one prompt which is better"),
    "marked": Choice("dpo", "the rows mark answers as liked or disliked, which are paired"),
    "ratings": Choice(
        None,
        "the rows are rated answers: some were wrong, and no log-probabilities of what wrote them "
        "are known",
        FEEDBACK,
    ),
    "prompts": Choice(
        None,
        "the rows are prompts without answers: rl where a program can judge an answer, distill "
        "where a teacher can give one, which the rows do not tell",
        WITH_ANSWERS,
    ),
    "mixed": Choice(None, "the rows have several forms", "give each form a file of its own"),
    "unknown": Choice(None, "what the rows are could not be told"),
}


def alternatives_of(rows: RowsForm, chosen: MethodName | None) -> Iterator[Alternative]:
    """Yield the other methods that the same rows can serve, with the condition of each."""
    short = f"{rows.num_short:,} of {rows.number:,} answers have at most {SHORT_WORDS} words"
    conditions: dict[MethodName, str] = {}
    if rows.form in ("chats", "prompts"):
        conditions = {
            "sft": "where the rows' answers are the ones that are wanted",
            "rl": f"where a program can tell a right answer from a wrong one ({short})",
            "distill": "where a larger model, or a better checkpoint, answers these prompts well",
        }
    if rows.form == "prompts":
        del conditions["sft"]
        conditions["rl"] = "where a program can tell a right answer from a wrong one"
    if rows.form in ("pairs", "marked"):
        conditions = {"sft": "with the better answers alone, as rows of their own; first of all"}
    for method, when in conditions.items():
        if method != chosen:
            yield Alternative(method, when, TRADE_OFFS[method])


def choice_facts(rows: RowsForm, config: TrainingConfig) -> dict[str, Any]:
    """All of it as named values."""
    choice = choice_of(rows.form, config)
    agrees = None if choice.method is None else choice.method == config.method
    return {
        "form": rows.form,
        "num_rows_looked_at": rows.number,
        "forms": dict(rows.forms),
        "proposed": choice.method,
        "why": choice.why if rows.unread is None else rows.unread,
        "trade_off": None if choice.method is None else TRADE_OFFS[choice.method],
        "instead": choice.instead,
        "settings": config.method,
        "agrees": agrees,
        "alternatives": [one._asdict() for one in alternatives_of(rows, choice.method)],
        "warnings": list(_warnings(choice, config)),
    }


def _warnings(choice: Choice, config: TrainingConfig) -> Iterator[str]:
    if choice.method not in (None, config.method):
        yield f"{disagreement(choice, config)}. Set method to {choice.method}"
    if "dpo" in (choice.method, config.method) and config.start_from is None:
        yield (
            "preferences teach which of two answers is better, not to answer: train with method "
            "sft first, and set start_from to its checkpoint"
        )


def disagreement(choice: Choice, config: TrainingConfig) -> str:
    """What the rows are for, where the settings have another method."""
    return f"{choice.why}, which is for method {choice.method}, and method is {config.method}"


def method_part(view: Planned) -> Part:
    """On the page alone, as the terminal has the method beside the model."""
    facts = choice_facts(view.rows, view.config)
    columns = [Column("Method"), Column("When"), Column("What it costs")]
    rows: Sequence[tuple[str, str, str]] = [
        *([] if facts["proposed"] is None else [_row(facts["proposed"], facts["why"])]),
        *((one["method"], one["when"], one["trade_off"]) for one in facts["alternatives"]),
    ]
    looked = f"By the form of {facts['num_rows_looked_at']:,} rows ({facts['form']})."
    blocks = [Table("Methods that the rows can serve", columns, rows, note=looked)] if rows else []
    details = [] if rows else [facts["why"], *filter(None, [facts["instead"]])]
    return Part("method_choice", "What the rows are for", [], facts, blocks, details)


def _row(method: MethodName, why: str) -> tuple[str, str, str]:
    return method, why, TRADE_OFFS[method]
