"""Which part of a text is its answer: its own turn, and the numbers that it gives in the end."""

from __future__ import annotations

import re
from itertools import pairwise

from grading.latex import BOX, END_OF_BOX
from grading.markdown import FINAL
from grading.normal_form import without_marks
from grading.numbers import Number, Span, read, spans_in

# A model that does not stop goes on with the other side's words.
_NEXT_TURN = re.compile(
    r"^[^\w\n]{0,8}_{0,2}(?:user|human)[^\w\n]{0,4}:|<\|[^|<>\n]{1,30}\|>|<(?:start|end)_of_turn>|</?s>|\[/?INST\]"
    r"|^[^\w\n]{0,8}instruction:?[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
NEXT_QUESTION = re.compile(
    r"\n[ \t]*\n[^\w\n]*(?:question|problem|exercise|q)[ \t]*\d*[\W_]{0,4}:", re.IGNORECASE
)
LAST_MARK = re.compile(
    r"\banswers?\b[\"']?[ \t]*(?:is|are|(?:would|must|should|will) be|equals|=|:|—)[ \t:=≈~]*"
    r"(?:(?:about|approximately|roughly|exactly|simply|[a-z] ?=) ?)*\n?[ \t\"'(\[]*",
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"[^\S\n]*(?:[^\W\d]{1,12})?[^\S\n]*[=≈][^\S\n]*")
_IS_ONE_OF_SEVERAL = re.compile(r"\s*(?:(?:or|to|of|and|out|plus|minus|times)\b|,\s*[-+]?\d)")
# What stands between values that are left open: "12 cm or 13 cm", "x = 5 or x = -5".
_NAME = r"(?:[a-z]_?\d?\s*=\s*)?"
_OR = re.compile(
    r"[^\S\n]*(?:[^\W\d_]{1,15}[^\S\n]?){0,2}?[)\]]?[,;]?\s*[(\[]?(?:\b(?:or|oder|ou|или)\b|或者?|または|또는)"
    rf"(?:\s+(?:else|possibly|maybe|even|perhaps|also)\b)?\s*[(\[]?\s*{_NAME}",
    re.IGNORECASE,
)
_AND = re.compile(
    rf"\s*(?:[,;]\s*(?:(?:and|und|et|y|и)\b|&)?|\b(?:and|und|et|y|и)\b|&|和)\s*{_NAME}"
)
_NOTHING_BEFORE = re.compile(
    r"[\s(\[{:]*(?:(?:the )?(?:answers?|roots|solutions)\b[^\n\d]{0,24}"
    r"|[a-z]\s*[=∈≡]\s*[({\[]?\s*)?"
)
_NOTHING_BEHIND = re.compile(r"\s*[)\]}]?\s*(?:[^\W\d_]{1,15}\s?){0,2}[.!)\s]*$")
_BRACE_BEFORE, _BRACE_BEHIND = re.compile(r"\{[ ]?$"), re.compile(r"[ ]?\}")
_END_OF_SENTENCE = re.compile(r"[^\S\n]*(?:[^\W\d_]{1,15}[^\S\n]?){0,2}[)\]}]?(?:[.!;](?!\d)|\n|$)")
_BOX = re.compile(f"{BOX}([^{BOX}{END_OF_BOX}]*){END_OF_BOX}")
LONGEST_JOIN = 60  # characters between two numbers
_NAMED = re.compile(r"\b(?:final|answer)\b", re.IGNORECASE)
NAME_BEFORE = 60  # characters before a box in which it may be called the answer
_SECOND_THOUGHT = re.compile(
    r"\b(?:wait|actually|correction|corrected|sorry|mistake|instead|hmm|rather|no)\b", re.IGNORECASE
)


def thinks_again(text: str) -> bool:
    """Whether a text takes back what stands before it."""
    return _SECOND_THOUGHT.search(text) is not None


def boxes_in(text: str) -> list[re.Match[str]]:
    """What is marked as an answer, in order; group 1 is what stands in a box."""
    return list(_BOX.finditer(text))


def own_turn(marked: str) -> str:
    """What stands before the first line of another speaker, where anything does."""
    for match in _NEXT_TURN.finditer(marked):
        before = marked[: match.start()]
        if re.search(r"\w", before):
            return before
    return marked


def answering_part(marked: str) -> str:
    """A text of its own turn, up to a question of its own that it goes on with."""
    return _before_next_question(own_turn(marked))


def final_boxes(text: str) -> list[re.Match[str]]:
    """The boxes that say a text's final value, in order.

    The last one, and those before it, up to where the text corrects itself between two of them, or
    calls the later one alone the answer.
    """
    boxes = boxes_in(text)
    first = max(0, len(boxes) - 1)
    for earlier, later in reversed(list(pairwise(boxes))):
        if _SECOND_THOUGHT.search(text, earlier.end(), later.start()):
            break
        if _is_named(text, later) and not _is_named(text, earlier):
            break
        first -= 1
    return boxes[first:]


def _is_named(text: str, box: re.Match[str]) -> bool:
    start = max(0, box.start() - NAME_BEFORE)
    previous = text.rfind(END_OF_BOX, start, box.start())
    return _NAMED.search(text, max(start, previous), box.start()) is not None


def final_numbers(text: str) -> list[Number]:
    """The number that a text gives as its answer; several where it leaves open which; none where it
    gives none, or one that cannot be read. `text` is an `answering_part`.

    What is looked at is the boxes, else the last line "#### 18", else what stands behind the last
    "answer is" or "answer:" unless the text thinks better of it, else the last number of the text.
    """
    if boxes := final_boxes(text):
        return _numbers_in_boxes([without_marks(box[1]) for box in boxes])
    if (end := text.rfind(END_OF_BOX)) >= 0:
        return last_numbers(without_marks(text[:end]))
    if FINAL in text:
        line = without_marks(text[text.rfind(FINAL) :].partition("\n")[0])
        numbers = last_numbers(line)
        if numbers and not line[: numbers[0].start].strip(" *_=:"):
            return numbers
    text = without_marks(text)
    spans = spans_in(text)
    marked = _after_mark(text, spans)
    return _last_of(text, spans) if marked is None else marked


def _numbers_in_boxes(boxes: list[str]) -> list[Number]:
    """Those of all boxes; an earlier one that holds but words says nothing about a number."""
    found: list[Number] = []
    for index, box in enumerate(boxes):
        numbers = last_numbers(box, is_box=True)
        is_last = index == len(boxes) - 1
        if not numbers and (is_last or re.search(r"\d", box)):
            return []
        found += numbers
    return found


def last_numbers(text: str, is_box: bool = False) -> list[Number]:
    """The last number of a text, or the last ones where it leaves open which."""
    return _last_of(text, spans_in(text), is_box)


def _all_readable(numbers: list[Number]) -> list[Number]:
    return [] if any(number.value is None for number in numbers) else numbers


def _last_of(text: str, spans: list[Span], is_box: bool = False) -> list[Number]:
    """The last number, which "42 = 6 x 7" gives before its work, and what is left open with it."""
    if not spans:
        return []
    last = read(text, spans[-1])
    if last.value is None and len(spans) > 1:
        before = read(text, spans[-2])
        if _GOES_ON.fullmatch(text[before.end : last.start]):
            return _all_readable([before])
    return _all_readable(_with_those_before(text, spans, last, is_box))


def _with_those_before(text: str, spans: list[Span], last: Number, is_box: bool) -> list[Number]:
    """The numbers that "or" joins to the last one, or all where the text is a list of values."""
    open_ones, listed = [last], [last]
    is_open, has_word = True, is_box
    for span in reversed(spans[:-1]):
        before = read(text, span)
        between = text[before.end : listed[0].start]
        is_or, is_and = _joins(_OR, between), _joins(_AND, between)
        is_open = is_open and (is_or or (is_and and len(open_ones) > 1))
        if is_open:
            open_ones.insert(0, before)
        if not (is_or or is_and):
            break
        listed.insert(0, before)
        has_word = has_word or between.strip() not in (",", ";")
    lead = text[: listed[0].start]
    if len(listed) > 1 and _BRACE_BEFORE.search(lead) and _BRACE_BEHIND.match(text, last.end):
        return listed  # a set gives all of its members
    # "1, 2, 3" alone counts up to its last number; "x = 1, 2", "1 and 2" and a box give them all.
    is_list = has_word or lead.strip() != ""
    if is_list and _NOTHING_BEFORE.fullmatch(lead) and _NOTHING_BEHIND.match(text, last.end):
        return listed
    return open_ones


def _joins(pattern: re.Pattern[str], between: str) -> bool:
    return len(between) <= LONGEST_JOIN and pattern.fullmatch(between) is not None


def _before_next_question(text: str) -> str:
    """A text that answered, and then went on with a question of its own, up to there."""
    match = NEXT_QUESTION.search(text)
    if match is None:
        return text
    before = text[: match.start()]
    return before if last_numbers(without_marks(before)) else text


def _after_mark(text: str, spans: list[Span]) -> list[Number] | None:
    """What stands behind the last "answer is"; None where no number does, or not alone."""
    marks = list(LAST_MARK.finditer(text))
    if not marks:
        return None
    place = marks[-1].end()
    following = [index for index, span in enumerate(spans) if span.end > place]
    if not following:
        return None
    index = following[0]
    number = read(text, spans[index])
    if number.start > place and text[place : number.start].strip():
        return None
    while index + 1 < len(spans):
        after = read(text, spans[index + 1])
        if after.value is None or not _GOES_ON.fullmatch(text[number.end : after.start]):
            break
        index, number = index + 1, after
    numbers = _with_those_behind(text, spans[index:], number)
    rest = text[numbers[-1].end :]
    if _SECOND_THOUGHT.search(rest) or _IS_ONE_OF_SEVERAL.match(rest):
        return None
    return _all_readable(numbers)


def _with_those_behind(text: str, spans: list[Span], first: Number) -> list[Number]:
    """The numbers left open with the first one: "3 or 4", and a list to the sentence's end."""
    numbers, is_or = [first], False
    for span in spans[1:]:
        after = read(text, span)
        between = text[numbers[-1].end : after.start]
        if _joins(_OR, between):
            is_or = True
        elif not _joins(_AND, between):
            break
        numbers.append(after)
    is_list = is_or or _END_OF_SENTENCE.match(text, numbers[-1].end) is not None
    return numbers if is_list else [first]
