"""Which part of a text is its answer: its own turn, and the number that it gives in the end."""

from __future__ import annotations

import re

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
_NEXT_QUESTION = re.compile(
    r"\n[ \t]*\n[^\w\n]*(?:question|problem|exercise|q)[ \t]*\d*[\W_]{0,4}:", re.IGNORECASE
)
_MARK = re.compile(
    r"\banswers?\b[\"']?[ \t]*(?:is|are|(?:would|must|should|will) be|equals|=|:|—)[ \t:=≈~]*"
    r"(?:(?:about|approximately|roughly|exactly|simply|[a-z] ?=) ?)*\n?[ \t\"'(\[]*",
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"[^\S\n]*(?:[^\W\d]{1,12})?[^\S\n]*[=≈][^\S\n]*")
_IS_ONE_OF_SEVERAL = re.compile(r"\s*(?:(?:or|to|of|and|out|plus|minus|times)\b|,\s*[-+]?\d)")
_SECOND_THOUGHT = re.compile(
    r"\b(?:wait|actually|correction|corrected|sorry|mistake|instead|hmm|rather|no)\b", re.IGNORECASE
)


def own_turn(marked: str) -> str:
    """What stands before the first line of another speaker, where anything does."""
    for match in _NEXT_TURN.finditer(marked):
        before = marked[: match.start()]
        if re.search(r"\w", before):
            return before
    return marked


def final_number(marked: str) -> Number | None:
    """The number that a text gives as its answer; None where it gives none that can be read.

    That is the one in the last box, else of the last line "#### 18", else behind the last "answer
    is" or "answer:" unless the text thinks better of it, else the last one of the text.
    """
    text = _before_next_question(own_turn(marked))
    if (end := text.rfind(END_OF_BOX)) >= 0:
        return _last_number(without_marks(text[text.rfind(BOX, 0, end) + 1 : end]))
    if FINAL in text:
        line = without_marks(text[text.rfind(FINAL) :].partition("\n")[0])
        number = _last_number(line)
        if number is not None and not line[: number.start].strip(" *_=:"):
            return number
    text = without_marks(text)
    spans = spans_in(text)
    marked_one = _after_mark(text, spans)
    if marked_one is not None:
        return _readable(marked_one)
    return _last_of(text, spans)


def _readable(number: Number) -> Number | None:
    return None if number.value is None else number


def _last_number(text: str) -> Number | None:
    return _last_of(text, spans_in(text))


def _last_of(text: str, spans: list[Span]) -> Number | None:
    """The last number, which "42 = 6 x 7" gives before its work."""
    if not spans:
        return None
    last = read(text, spans[-1])
    if last.value is None and len(spans) > 1:
        before = read(text, spans[-2])
        if _GOES_ON.fullmatch(text[before.end : last.start]):
            return _readable(before)
    return _readable(last)


def _before_next_question(text: str) -> str:
    """A text that answered, and then went on with a question of its own, up to there."""
    match = _NEXT_QUESTION.search(text)
    if match is None:
        return text
    before = text[: match.start()]
    return text if _last_number(without_marks(before)) is None else before


def _after_mark(text: str, spans: list[Span]) -> Number | None:
    marks = list(_MARK.finditer(text))
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
    rest = text[number.end :]
    if _IS_ONE_OF_SEVERAL.match(rest) or _SECOND_THOUGHT.search(rest):
        return None
    return number
