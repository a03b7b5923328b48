"""Pairs of answers, one of which is preferred: the forms that files have them in.

A pair is read as two rows of the forms that `rows.forms` knows, one for each answer, which have to
agree in all that comes before it. Rows that mark one answer as liked or disliked are paired where
two of them have the same prompt, in the order of the file. A row that prefers nothing, or finds no
partner, is no mistake: it is set aside with its reason. Pure: fields in, records out.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rows.examples import Example, Message, Record, make_record
from rows.forms import Reading, given_of, is_messages, marks_of, read_form
from rows.places import first_words
from rows.row_keys import (
    IN_COMPARISON,
    LIKED_KEYS,
    OTHER_PREFERENCE_KEYS,
    PAIR_SHAPES,
    REASONING_KEYS,
    ROLES,
)
from rows.tool_calls import TOOL_KEYS, decoded, is_blank

ANSWERS = ("chosen", "rejected")
PROMPTS = ("prompt", "instruction", "messages", "conversations")  # the likeliest first
# What would make another row of a pair's fields, or be said of both answers at once.
_NOT_BESIDE = (*ANSWERS, *PROMPTS, "output", "completion", *REASONING_KEYS, *LIKED_KEYS)
_SPEAKERS = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")  # of conversations in one text


class Placed(NamedTuple):
    """A pair, and the line of its chosen answer."""

    reading: Reading
    line_no: int


class Aside(NamedTuple):
    """A row that is no mistake and no pair."""

    line_no: int
    kind: Literal["tie", "unpaired"]
    reason: str
    text: str  # what it asks first


@dataclass(frozen=True)
class _Half:
    """A row that marks its one answer, and waits for one with the other mark."""

    reading: Reading
    line_no: int

    @property
    def answer(self) -> Message:
        return self.reading.record.messages[-1]


class PairReader:
    """Reads the rows of one source."""

    def __init__(self) -> None:
        # By prompt: those that are liked, and those that are not.
        self._waiting: dict[bytes, tuple[deque[_Half], deque[_Half]]] = {}

    def read(self, fields: Mapping[str, Any], line_no: int) -> Placed | Aside | None:
        """The pair that a row is or completes; None where it waits for another row.

        Raises `ValueError` with the reason where it is no row of a pair.
        """
        given = given_of(fields)
        given |= {key: fields[key] for key in ANSWERS if not is_blank(fields.get(key))}
        _refuse_other_names(given)
        if any(key in given for key in ANSWERS):
            return _placed(*_sides(given), line_no)
        if "comparison" in given:
            compared, unused = _compared(given)
            if compared is None:
                return Aside(line_no, "tie", "its label is Tie", "")
            return _placed(*_sides(compared), line_no, unused)
        return self._marked(given, line_no)

    def _marked(self, given: Mapping[str, Any], line_no: int) -> Placed | None:
        """A row with a mark: completed by the first one of the other mark that waits."""
        marks = marks_of(given)
        if not marks:
            found = ", ".join(sorted(map(str, given))[:8]) or "none"
            raise ValueError(
                f"it prefers no answer, and method dpo trains on preferences: expected "
                f"{PAIR_SHAPES}, found keys: {found}"
            )
        if len(set(marks.values())) > 1:
            raise ValueError(f"{' and '.join(marks)} say different things of its answer")
        is_liked = next(iter(marks.values()))
        reading = read_form({key: value for key, value in given.items() if key not in marks})
        half = _Half(reading, line_no)
        waiting = self._waiting.setdefault(_prompt_of(reading.record), (deque(), deque()))
        others = waiting[is_liked]
        other = next((one for one in others if one.answer != half.answer), None)
        if other is None:
            waiting[not is_liked].append(half)
            return None
        others.remove(other)
        chosen, rejected = (half, other) if is_liked else (other, half)
        made = _placed(chosen.reading, rejected.reading, chosen.line_no)
        assert isinstance(made, Placed), "their answers differ"
        return made

    def left(self) -> Iterator[Aside]:
        """Yield the rows that found no partner."""
        for sides in self._waiting.values():
            for half, missing in ((one, not side) for side, x in enumerate(sides) for one in x):
                said = "liked" if not missing else "disliked"
                reason = f"no row that is marked as {said} and has another answer has its prompt"
                text = first_words(half.reading.record.messages)
                yield Aside(half.line_no, "unpaired", reason, text)


# --- from two rows to a pair ----------------------------------------------------------------------


def _placed(
    chosen: Reading, rejected: Reading, line_no: int, unused: tuple[str, ...] = ()
) -> Placed | Aside:
    """One record of two that end in the answers. Raises `ValueError` where they are no pair."""
    one, other = chosen.record, rejected.record
    for position, (message, its) in enumerate(zip(one.messages, other.messages, strict=False)):
        is_last = position == len(one.messages) - 1 == len(other.messages) - 1
        if message != its and not is_last:
            raise ValueError(
                f"chosen and rejected differ at message {position}, before their last answers, and "
                "a preference is of two answers to the same conversation"
            )
    if len(one.messages) != len(other.messages):
        raise ValueError("chosen and rejected are conversations of different lengths")
    if (one.tools, one.weight) != (other.tools, other.weight):
        raise ValueError("chosen and rejected have different tools or weights")
    answers = one.messages[-1], other.messages[-1]
    if any(answer.weight is not None for answer in answers):
        raise ValueError(
            "an answer has a weight of its own, and a preference is of the whole answer; give the "
            "row a weight, or leave it out"
        )
    if answers[0] == answers[1]:
        reason = "its chosen and its rejected answer are the same"
        return Aside(line_no, "tie", reason, first_words(one.messages))
    topic = other.topic if one.topic is None else one.topic
    messages = *_unweighted(one.messages[:-1]), answers[0]
    record = make_record(messages, topic, one.tools, one.weight, answers[1])
    names = {*chosen.unused, *rejected.unused, *unused}
    return Placed(Reading(record, tuple(sorted(names))), line_no)


def _unweighted(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """What comes before the answers, none of which is trained, whatever a row says of it."""
    return tuple(message._replace(weight=None) for message in messages)


def _prompt_of(record: Record) -> bytes:
    """All that two marked rows have to share."""
    before = _unweighted(record.messages[:-1])
    return make_record(before, None, record.tools, record.weight).key


class _Sides(NamedTuple):
    chosen: Reading
    rejected: Reading


def _sides(given: Mapping[str, Any]) -> _Sides:
    """A row with both answers as two rows with one each."""
    given = _lifted(given)
    missing = next((key for key in ANSWERS if key not in given), None)
    if missing is not None:
        raise ValueError(f'"{missing}" is missing or empty, and a pair has both answers')
    beside = {key: value for key, value in given.items() if key not in _NOT_BESIDE}
    named = next((key for key in PROMPTS if key in given), None)
    prompt = None if named is None else _prompt(given[named])
    answers = [_answer(given[key], key) for key in ANSWERS]
    is_whole = [isinstance(one, list) and _begins_whole(one) for one in answers]
    if len(set(is_whole)) > 1:
        raise ValueError("one of chosen and rejected is a whole conversation, and one an answer")
    if all(is_whole):
        if named in PROMPTS[:2]:
            _refuse_prompt_elsewhere(prompt, answers[0])
        forms = [{"messages": one, **beside} for one in answers]
    elif prompt is None:
        found = ", ".join(sorted(map(str, given))[:8])
        raise ValueError(
            f'"prompt" is missing or empty, so that nothing was answered; found keys: {found}'
        )
    else:
        forms = [{"prompt": prompt, "completion": one, **beside} for one in answers]
    used = {*ANSWERS, named} if not all(is_whole) or named in PROMPTS[:2] else {*ANSWERS}
    left_out = [key for key in given if key in _NOT_BESIDE and key not in used]
    chosen, rejected = map(read_form, forms)
    return _Sides(chosen._replace(unused=(*chosen.unused, *left_out)), rejected)


def _lifted(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row whose prompt is an object with the messages, and perhaps tools, as OpenAI has it, with
    these beside the answers; what else is in it is called by both names."""
    prompt = decoded(given.get("prompt"))
    if not isinstance(prompt, dict) or "messages" not in prompt:
        return given
    of_row = {key: one for key, one in given.items() if key != "prompt"}
    inside = {key: one for key, one in prompt.items() if key != "messages" and not is_blank(one)}
    lifted = {key if key in TOOL_KEYS else f"prompt.{key}": one for key, one in inside.items()}
    twice = next((key for key in lifted if key in of_row), None)
    if twice is not None:
        raise ValueError(f'"{twice}" stands in "prompt" and beside it; keep one')
    return {**of_row, **lifted, "prompt": prompt["messages"]}


def _answer(value: Any, key: str) -> Any:
    """A text, or messages: of the answer, or of the whole conversation."""
    read = decoded(value)
    read = [read] if isinstance(read, dict) and is_messages([read]) else read
    if is_messages(read):
        return read
    if not isinstance(value, str | bytes):
        raise ValueError(f'"{key}" is neither a text nor a list of messages with their roles')
    return _spoken(value) or value


def _prompt(value: Any) -> Any:
    """A question, or the messages before the answers."""
    read = decoded(value)
    if is_messages(read):
        return read
    spoken = _spoken(value)
    if spoken is not None and spoken[-1]["role"] == "assistant" and not spoken[-1]["content"]:
        return spoken[:-1]  # it ends where the answers begin
    return spoken or value


def _spoken(value: Any) -> list[dict[str, str]] | None:
    """The messages of a text that is a conversation of `Human:` and `Assistant:` turns."""
    if not isinstance(value, str) or not value.startswith("\n\nHuman:"):
        return None
    _, *parts = _SPEAKERS.split(value)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _begins_whole(messages: list[Any]) -> bool:
    """Whether messages begin with what was asked, not with the answer."""
    first = messages[0]
    named = first.get("role", first.get("from"))
    return not (isinstance(named, str) and ROLES.get(named.strip().casefold()) == "assistant")


def _refuse_prompt_elsewhere(prompt: Any, whole: list[Any]) -> None:
    """A prompt beside whole conversations must be how they begin, or stand in them."""
    if isinstance(prompt, list):
        stands = whole[: len(prompt)] == prompt
    else:
        said = [str(one.get("content", one.get("value", ""))) for one in whole]
        stands = any(str(prompt).strip() in one for one in said)
    if not stands:
        raise ValueError('"prompt" does not stand in the conversations of chosen and rejected')


# --- pairs that contradict each other -------------------------------------------------------------


def opposites(pairs: Sequence[Example]) -> dict[int, int]:
    """Of pairs that are there the other way round as well, to the same prompt, the positions, each
    with that of the first one that says the opposite."""
    by_sides: dict[bytes, list[int]] = {}
    for position, pair in enumerate(pairs):
        by_sides.setdefault(_either_way(pair), []).append(position)
    found: dict[int, int] = {}
    for positions in by_sides.values():
        first: dict[Message, int] = {}  # by what is chosen
        for position in positions:
            first.setdefault(pairs[position].messages[-1], position)
        if len(first) > 1:
            for position in positions:
                chosen = pairs[position].messages[-1]
                found[position] = next(at for said, at in first.items() if said != chosen)
    return found


def _either_way(pair: Example) -> bytes:
    """A digest of a prompt and both answers to it, in whichever order."""
    assert pair.rejected is not None, "it is a pair"
    sides = (make_record((one,), None).key for one in (pair.messages[-1], pair.rejected))
    return make_record(pair.messages[:-1], None, pair.tools).key + b"".join(sorted(sides))


# --- comparisons ----------------------------------------------------------------------------------


def _compared(given: Mapping[str, Any]) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """A comparison as a row with both answers (None: a tie), and what of it is not used."""
    comparison = decoded(given["comparison"])
    if not isinstance(comparison, dict):
        raise ValueError('"comparison" is not an object')
    absent = next((key for key in IN_COMPARISON if is_blank(comparison.get(key))), None)
    if absent is not None:
        raise ValueError(f'"{absent}" of the comparison is missing or empty')
    label = given.get("label")
    said = label.strip().casefold() if isinstance(label, str) else label
    if said not in ("a", "b", "tie"):
        raise ValueError(f'"label" is {label!r}, and which completion is preferred: A, B or Tie')
    unused = tuple(f"comparison.{key}" for key in comparison if key not in IN_COMPARISON)
    if said == "tie":
        return None, unused
    prompt, *completions = (comparison[key] for key in IN_COMPARISON)
    chosen, rejected = completions if said == "a" else completions[::-1]
    beside = {key: value for key, value in given.items() if key not in ("comparison", "label")}
    beside = {key: value for key, value in beside.items() if key not in PROMPTS}
    left_out = tuple(key for key in given if key in PROMPTS)
    return {**beside, "prompt": prompt, "chosen": chosen, "rejected": rejected}, unused + left_out


def _refuse_other_names(given: Mapping[str, Any]) -> None:
    """Raise `ValueError` where a side of a pair is called otherwise."""
    found = next((key for key in OTHER_PREFERENCE_KEYS if key in given), None)
    if found is not None:
        raise ValueError(
            f'"{found}": a pair has its answers in "chosen" and "rejected"; say in data.columns '
            "what the file calls them, or take the key out"
        )
