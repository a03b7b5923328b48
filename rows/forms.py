"""What a row may look like: its form, what each key means, and the conversation it comes to.

No key is silent: each one is used, or refuses the row, or is handed back as unused, to be named
once. A key whose value is blank (null, white space, an empty list, NaN) counts as absent. Which key
is which is data here, and a table in docs/data.md. Pure: fields in, a record out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rows.examples import Message, Record, make_record
from rows.row_keys import (
    CALL_ROLES,
    CHOICE_KEYS,
    CHOICES,
    CONTEXT,
    CONTEXT_KEYS,
    DISLIKED,
    DISLIKING,
    HARMONY,
    LIKED_KEYS,
    LIKING,
    MAX_WEIGHT,
    MIN_WEIGHT,
    PAIRS,
    PROMPT_SHAPES,
    QUESTION_KEYS,
    REASONING_KEYS,
    REFUSED,
    REFUSED_IN_MESSAGE,
    ROLES,
    SHAPES,
    SYSTEM_KEYS,
    TEXT_KEYS,
    TEXT_PARTS,
    THINKING_PARTS,
    TRAINED_KEYS,
    WEIGHT_KEYS,
    is_answer_key,
)
from rows.sources import is_text
from rows.tool_calls import (
    TOOL_KEYS,
    calls_in,
    calls_of,
    decoded,
    is_blank,
    is_blank_json,
    number_of,
    text_of,
    tool_answers,
    tools_of,
    with_names,
)


class Reading(NamedTuple):
    """What a row comes to, and its keys that nothing here uses."""

    record: Record
    unused: tuple[str, ...]


# --- rows -----------------------------------------------------------------------------------------


def read_form(fields: Mapping[str, Any], *, may_ask: bool = False) -> Reading:
    """What a row trains on; with `may_ask` it may hold what is asked, and no answer.

    Raises `ValueError` with the reason where it is no training row.
    """
    plain = _plain(fields)
    if plain is not None:
        return plain
    given = given_of(fields)
    if not REFUSED.keys().isdisjoint(given):
        key = _first(REFUSED, given)
        raise ValueError(f'"{key}": {REFUSED[key]}')
    used = {"topic", *SYSTEM_KEYS, *TOOL_KEYS, *WEIGHT_KEYS, *TRAINED_KEYS}
    unused: set[str] = set()
    key = next((one for one in ("messages", "conversations") if one in given), None)
    if key is not None:
        messages = _conversation(given[key], key, unused)
        used.add(key)
        _refuse_context_elsewhere(given, messages)
    else:
        alone = _question_alone(given) if may_ask else None
        if alone is None:
            pair = _pair_of(fields, given, PROMPT_SHAPES if may_ask else SHAPES)
            used |= {*pair, *CONTEXT_KEYS, "history", *REASONING_KEYS}
            asked, answered = _asked(given, pair, unused), _answered(given, pair, unused)
        else:
            used |= {alone, *CONTEXT_KEYS, "history"}
            asked, answered = _asked(given, (alone, None), unused), ()
        messages = (*_history(given.get("history")), *asked, *answered)
    messages = _with_system(given, messages)
    if messages[-1].role == "assistant":
        used.update(_likings(given))
    else:
        _refuse_answer_elsewhere(given, used)
    _refuse_incomplete(messages, may_ask=may_ask)
    _refuse_choices_elsewhere(given, messages)
    weight = _weight(given, unused, "")
    record = make_record(
        messages, _topic(given.get("topic")), tools_of(given), 1.0 if weight is None else weight
    )
    unused |= given.keys() - used
    return Reading(record, tuple(sorted(unused)))


def _plain(fields: Mapping[str, Any]) -> Reading | None:
    """What a row of two plain texts and perhaps a topic comes to, as almost every row of a large
    file is; None for any other, which `read_form` reads to the same end in twice the time."""
    topic = fields.get("topic")
    if len(fields) != (2 if topic is None else 3):
        return None
    for asked, answered in PAIRS:
        question, answer = fields.get(asked), fields.get(answered)
        if isinstance(question, str) and isinstance(answer, str):
            texts = (question, answer) if topic is None else (question, answer, topic)
            for text in texts:
                if not isinstance(text, str) or text.isspace() or text[:1] in _NOT_PLAIN:
                    return None
                if not text.isascii() and not is_text(text):
                    return None
            messages = (Message("user", question), Message("assistant", answer))
            return Reading(make_record(messages, topic), ())
    return None


_NOT_PLAIN = ("", "[")  # no text, or perhaps messages as JSON text


def given_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that say something; where no text is meant, blank JSON text is blank as well."""
    return {
        key: value
        for key, value in fields.items()
        if not is_blank(value) and (key in TEXT_KEYS or not is_blank_json(value))
    }


def _first(table: Iterable[str], given: Mapping[str, Any]) -> str:
    return next(key for key in table if key in given)


def _likings(given: Mapping[str, Any]) -> list[str]:
    """The keys that mark the row as liked. Raises `ValueError` where one marks it as disliked."""
    marks = marks_of(given)
    for key, is_liked in marks.items():
        if not is_liked:
            raise ValueError(f'"{key}" is {given[key]!r}: {DISLIKED}')
    return list(marks)


def marks_of(given: Mapping[str, Any]) -> dict[str, bool]:
    """The keys that mark the row's answer as liked, or as disliked."""
    marks: dict[str, bool] = {}
    for key in LIKED_KEYS:
        value = given.get(key)
        said = value.strip().strip("\"'").casefold() if isinstance(value, str) else value
        number = number_of(said) if isinstance(said, str) else said
        is_number = isinstance(number, bool | int | float)
        if said in DISLIKING or (is_number and number <= 0):
            marks[key] = False
        elif said in LIKING or number == 1:
            marks[key] = True
        elif said is not None and key != "label":  # which may be a class's name
            raise ValueError(f'"{key}" is {value!r}, neither true nor false')
    return marks


def _refuse_context_elsewhere(given: Mapping[str, Any], messages: Sequence[Message]) -> None:
    """What stands beside a conversation must be in it, where the answer may rest on it."""
    for key in ("history", *CONTEXT_KEYS):
        value = given.get(key)
        if value is not None and not (
            isinstance(value, str)
            and any(value.strip() in one.content for one in messages if one.role != "assistant")
        ):
            raise ValueError(f'"{key}" stands beside the messages and not in them: {CONTEXT}')


def _refuse_choices_elsewhere(given: Mapping[str, Any], messages: Sequence[Message]) -> None:
    """What there is to choose from must be in what is asked, where the answer is one of it."""
    for key in CHOICE_KEYS:
        if key not in given:
            continue
        asked = _flat(" ".join(one.content for one in messages if one.role != "assistant"))
        missing = next((one for one in _choices(given.get(key)) if _flat(one) not in asked), None)
        if missing is not None:
            raise ValueError(f'"{key}" holds {missing!r}, and what is asked does not: {CHOICES}')


def _flat(text: str) -> str:
    return " ".join(text.casefold().split())


def _choices(value: Any) -> list[str]:
    """The answers to choose from: a list of texts, in an object by letters, or as its "text"."""
    value = decoded(value) if isinstance(value, str) else value
    if isinstance(value, dict):
        by_letter = all(isinstance(key, str) and len(key) == 1 for key in value)
        value = list(value.values()) if by_letter else value.get("text")
    is_list = isinstance(value, list) and len(value) > 1
    return value if is_list and all(isinstance(one, str) for one in value) else []


def _question_alone(given: Mapping[str, Any]) -> str | None:
    """The key of what is asked, in a row that has no answer to it; None where it has one."""
    if any(asked in given and answered in given for asked, answered in PAIRS):
        return None
    return next((key for key in QUESTION_KEYS if key in given), None)


def _refuse_answer_elsewhere(given: Mapping[str, Any], used: Collection[str]) -> None:
    """A row is one without an answer where no key of it may hold one."""
    found = next((key for key in given if key not in used and is_answer_key(key)), None)
    if found is not None:
        raise ValueError(
            f'"{found}" may hold the answer, and is not read as one beside what is asked: call the '
            'two "instruction" and "output" (in the file, or by data.columns), make it the last '
            "message, or take it out"
        )


def _refuse_incomplete(messages: tuple[Message, ...], *, may_ask: bool) -> None:
    if messages[-1].role != "assistant" and not (may_ask and messages[-1].role != "system"):
        raise ValueError("the last message is not the assistant's, so there is nothing to train on")
    if not any(message.role == "user" for message in messages):
        raise ValueError("there is no user message")


def _topic(value: Any) -> str | None:
    """A topic by its name or its number."""
    if value is None:
        return None
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else text_of(value, '"topic"')


def _pair_of(fields: Mapping[str, Any], given: Mapping[str, Any], shapes: str) -> tuple[str, str]:
    """The keys of the question and the answer. Raises `ValueError` where there are none."""
    for pair in PAIRS:
        if pair[0] in given and pair[1] in given:
            return pair
    half = next((p for p in PAIRS if all(fields.get(key) is not None for key in p)), None)
    if half is not None:
        blank = next(key for key in half if key not in given)
        raise ValueError(f'"{blank}" is empty')
    for key in ("messages", "conversations"):
        if fields.get(key) is not None:
            raise ValueError(f'"{key}" is not a list with at least one message')
    found = ", ".join(sorted(map(str, fields))[:8]) or "none"
    raise ValueError(f"expected {shapes}, found keys: {found}")


def _asked(
    given: Mapping[str, Any], pair: tuple[str, str | None], unused: set[str]
) -> Sequence[Message]:
    """What comes before the answer of a pair: a question with its context, or messages."""
    asked = _messages_or_text(given, pair)[0]
    context = [key for key in CONTEXT_KEYS if key in given and key not in pair]
    if not isinstance(asked, str) and is_messages(asked):
        # The split is what this form is for: answers in the prompt are examples, and not trained.
        messages = [
            one._replace(weight=0.0) if one.role == "assistant" else one
            for one in _conversation(asked, pair[0], unused)
        ]
        _refuse_context_elsewhere({key: given[key] for key in context}, messages)
        return messages
    question = text_of(asked, f'"{pair[0]}"')
    for key in context:
        question += "\n\n" + text_of(given[key], f'"{key}"')
    return (Message("user", question),)


def _answered(
    given: Mapping[str, Any], pair: tuple[str, str], unused: set[str]
) -> Sequence[Message]:
    answered = _messages_or_text(given, pair)[1]
    if not isinstance(answered, str) and is_messages(answered):
        return _conversation(answered, pair[1], unused)
    return (Message("assistant", text_of(answered, f'"{pair[1]}"'), reasoning=_reasoning(given)),)


def _messages_or_text(given: Mapping[str, Any], pair: tuple[str, str | None]) -> tuple[Any, Any]:
    """Both sides of a pair, or what is asked alone. Texts that are JSON lists of messages, as
    Parquet and CSV have TRL's form, are these; any other text is itself, also where it is JSON."""
    sides = [given[key] for key in pair if key is not None]
    is_trl = pair in (("prompt", "completion"), ("prompt", None))
    if is_trl and isinstance(sides[0], str) and sides[0].lstrip()[:1] == "[":
        read = [decoded(one) for one in sides]
        sides = read if all(is_messages(one) for one in read) else sides
    return sides[0], sides[-1]


def is_messages(value: Any) -> bool:
    return (
        bool(value)
        and isinstance(value, list)
        and all(isinstance(one, dict) and ("role" in one or "from" in one) for one in value)
    )


def _history(value: Any) -> tuple[Message, ...]:
    """Earlier turns: pairs of a question and an answer, or messages."""
    value = decoded(value)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError('"history" is not a list of earlier turns')
    if is_messages(value):
        return _conversation(value, "history", set())
    messages: list[Message] = []
    for turn in value:
        if not (isinstance(turn, list | tuple) and len(turn) == 2):
            raise ValueError('"history" is not a list of [question, answer]')
        asked, answered = (text_of(one, "a turn of the history") for one in turn)
        messages += Message("user", asked), Message("assistant", answered)
    return tuple(messages)


def _with_system(given: Mapping[str, Any], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    texts = {text_of(given[key], f'"{key}"'): key for key in SYSTEM_KEYS if key in given}
    if not texts:
        return messages
    if len(texts) > 1:
        raise ValueError(f"{' and '.join(texts.values())} hold different texts")
    ((text, key),) = texts.items()
    if messages[0].role != "system":
        return (Message("system", text), *messages)
    if messages[0].content.strip() != text.strip():
        raise ValueError(f'"{key}" and the system message hold different texts; keep one')
    return messages


# --- messages -------------------------------------------------------------------------------------


def _conversation(raw: Any, key: str, unused: set[str]) -> tuple[Message, ...]:
    raw = decoded(raw)
    if not isinstance(raw, list) or not raw:
        raise ValueError(f'"{key}" is not a list with at least one message')
    messages: list[Message] = []
    for index, item in enumerate(raw):
        item = decoded(item)
        if not isinstance(item, dict):
            raise ValueError(f"message {index} is not an object")
        messages += _messages_of(item, index, unused)
    return tuple(with_names(messages))


def _messages_of(item: Mapping[str, Any], index: int, unused: set[str]) -> list[Message]:
    """One message; of a tool turn that holds several answers, one for each."""
    what = f"message {index}"
    given = given_of(item)
    named = given.get("role", given.get("from"))
    _refuse_two_sides(given, what)
    role = ROLES.get(named.strip().casefold()) if isinstance(named, str) else None
    if named is None:
        raise ValueError(f"{what} has no role")
    if role is None:
        raise ValueError(
            f"{what} has the role {named!r}, and none of system, user, assistant, tool, or of what "
            "ShareGPT calls them"
        )
    if REFUSED_IN_MESSAGE.keys() & given.keys():
        key = _first(REFUSED_IN_MESSAGE, given)
        raise ValueError(f'"{key}" of {what}: {REFUSED_IN_MESSAGE[key]}')
    for key, plain in HARMONY.items():
        if given.get(key, plain) != plain:
            raise ValueError(f'"{key}" of {what} is {given[key]!r}: write it as what it is, a '
                             "reasoning_content or a tool call")  # fmt: skip
    content, inline = _content(item, what, unused)
    used = {"role", "from", "content", "value", *WEIGHT_KEYS, *TRAINED_KEYS, *HARMONY}
    weight = _weight(given, unused, f"{what}: ")
    if role == "tool":
        used |= {"name", "tool_call_id"}
        unused |= {f"messages[].{key}" for key in given.keys() - used}
        call = {key: text_of(given[key], key) for key in ("name", "tool_call_id") if key in given}
        made = Message(role, "", name=call.get("name"), call_id=call.get("tool_call_id"))
        return [made._replace(content=one) for one in tool_answers(content, what)]
    if role != "assistant":
        unused |= {f"messages[].{key}" for key in given.keys() - used}
        return [Message(role, text_of(content, f"{what}'s content"), weight=weight)]
    used |= {"tool_calls", "function_call", *REASONING_KEYS}
    unused |= {f"messages[].{key}" for key in given.keys() - used}
    is_call = named.strip().casefold() in CALL_ROLES
    calls = calls_in(decoded(content), what, unused) if is_call else calls_of(given, what, unused)
    text = "" if is_call or (calls and is_blank(content)) else text_of(content, f"{what}'s content")
    reasoning = _reasoning(given)
    if reasoning is not None and inline is not None and reasoning != inline:
        raise ValueError(f"{what} holds two different reasonings")
    weight = None if weight == 1 else weight  # an answer counts as much where nothing says so
    return [Message(role, text, inline if reasoning is None else reasoning, calls, weight=weight)]


def _refuse_two_sides(given: Mapping[str, Any], what: str) -> None:
    """Of two spellings of one thing, as a union of schemas has them, both must say the same."""
    for one, other in (("role", "from"), ("content", "value")):
        if one in given and other in given:
            sides = [ROLES.get(str(given[k]).casefold(), given[k]) for k in (one, other)]
            if sides[0] != sides[1]:
                raise ValueError(f'"{one}" and "{other}" of {what} say different things; keep one')


def _content(item: Mapping[str, Any], what: str, unused: set[str]) -> tuple[Any, str | None]:
    """A message's text and reasoning, where it is written in parts; else its content as it is."""
    content = item.get("content")
    content = item.get("value") if content is None else content
    if not isinstance(content, list) or not content:
        return content, None
    texts, thoughts = [], []
    if len(content) > 1 and all(isinstance(part, str) for part in content):
        raise ValueError(f"{what}'s content is a list of texts, and which is meant is not said")
    for part in content:
        read = decoded(part)
        part = read if isinstance(read, dict) and "type" in read else part
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        if not isinstance(part, dict):
            raise ValueError(f"{what}'s content is a list of what is neither text nor part")
        given = {key: value for key, value in part.items() if value is not None}
        kind = given.get("type", "text" if "text" in given else None)
        key = "text" if kind in TEXT_PARTS or "text" in given else "thinking"
        if kind not in (*TEXT_PARTS, *THINKING_PARTS) or not isinstance(given.get(key), str):
            raise ValueError(f"{what} has a part of type {kind!r}, and only text is trained")
        if kind in TEXT_PARTS:
            texts.append(given[key])
        elif any(text.strip() for text in texts):
            raise ValueError(f"{what} thinks after it has begun to answer, which no format renders")
        else:
            thoughts.append(given[key])
        unused |= {f"messages[].content[].{one}" for one in given.keys() - {"type", key}}
    return "".join(texts), "".join(thoughts).strip() or None


def _reasoning(given: Mapping[str, Any]) -> str | None:
    """The reasoning before an answer. Raises `ValueError` where two keys differ."""
    texts = {text_of(given[key], f'"{key}"') for key in REASONING_KEYS if key in given}
    if len(texts) > 1:
        raise ValueError(f"{' and '.join(k for k in REASONING_KEYS if k in given)} differ")
    return next(iter(texts), None)


def _weight(given: Mapping[str, Any], unused: set[str], what: str) -> float | None:
    """How much a message or a row counts in the loss; None where nothing says so."""
    found: dict[str, float] = {}
    for key in (*WEIGHT_KEYS, *TRAINED_KEYS):
        if key not in given:
            continue
        value, is_weight = given[key], key in WEIGHT_KEYS
        if isinstance(value, str) and value.strip().casefold() in ("true", "false"):
            value = value.strip().casefold() == "true"
        elif isinstance(value, str):
            value = number_of(value)
        if not isinstance(value, bool | int | float) or (
            value != 0 and not MIN_WEIGHT <= value <= MAX_WEIGHT
        ):
            raise ValueError(
                f'{what}"{key}" is {str(given[key])[:40]!r}, not 0 and not a number from '
                f"{MIN_WEIGHT:g} to {MAX_WEIGHT:,}"
            )
        if key == "loss" and value not in (0, 1):  # what a model's loss on it was, most likely
            unused.add(f"messages[].{key}" if what else key)
        elif not is_weight and value not in (0, 1):
            raise ValueError(f'{what}"{key}" is {given[key]!r}, neither true nor false')
        else:
            found[key] = float(value)
    if len(set(found.values())) > 1:
        raise ValueError(f"{what}{' and '.join(found)} say different things")
    return next(iter(found.values()), None)
