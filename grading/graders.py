"""The graders of question files: whether an answer is an accepted one, as a reader would say."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial

from grading.answers import own_turn
from grading.expressions import are_set_and_point, in_other_base, is_unsolved
from grading.final_values import Value, final_values, gold_value
from grading.math_process import NotJudged, is_expression, is_same_expression, value_of
from grading.normal_form import folded, marked_form, readable_form, without_marks
from grading.numbers import CURRENCIES, Number, read, spans_in
from grading.scripts import is_mark, is_of_word, is_unspaced

GRADING = 3
"""What changes a grade has a number: scores of another one are another protocol."""

RELATIVE_TOLERANCE = Fraction(1, 10**6)
MAX_TOLERANCE = Fraction(1, 200)  # half a hundredth, which is how precisely money is given

# A number in a text of words, which nothing that stands beside it becomes a part of.
_OPEN, _CLOSE = "\ue010", "\ue011"
_YES = frozenset(("yes", "ja", "oui", "sí", "sì", "да", "はい", "是"))
_NO = frozenset(("no", "nein", "non", "нет", "いいえ", "否", "不是"))
# 是 is "is" in 答案是否 ("the answer is no"), and "yes" where it stands alone.
_POLAR = re.compile(
    r"\b(?:yes|ja|oui|sí|sì|да|no|nein|non|нет)\b(?!-)|いいえ|はい(?!い)|(?<!是)不是"
    r"|(?:(?<!\w)|(?<=案是)|(?<=答是))是(?=的|[^\w\s]|$)"
    r"|(?<!是)否|(?<=是)否(?=定|的|\W|$)(?!\s?\?)"
)
_BOTH_POLES = re.compile(r"\byes ?(?:or|/) ?no\b")
_ELISION = re.compile(r"(?:^|\W)(?:[cdjlmnst]|qu|un|dell|all|nell|dall|sull)'$")
# The last zero of "Python 3.10" tells it from 3.1.
_LAST_ZERO = re.compile(r"\d+(?:\.\d+)*\.\d*0")
_LEADING_ZERO = re.compile(r"(?<![\w.,:/'])0\d")
_VERSION_OF = re.compile(
    r"(?<![^\W\d_])(?:python|version|ver\.?|v\.?|release|java|node(?:\.js)?|ubuntu|django|section"
    r"|chapter|figure|article|table) ?$",
    re.IGNORECASE,
)
# Signs that make another word of the one that they stand beside.
_JOINING_BEFORE, _JOINING_AFTER = "-'.@&+#", "-'.@&"
_KEPT_AROUND = "#%&@/+"


def grade_includes(answer: str, accepted: Sequence[str]) -> bool:
    """An accepted answer stands in the text as whole words or numbers, in whatever dress.

    "4" is not in "14", "-4", "4.5" or "4:30".
    """
    text = without_marks(own_turn(marked_form(answer)))
    return any(_stands_in(*pair) for pair in _alike(_words, text, accepted))


def grade_exact(answer: str, accepted: Sequence[str]) -> bool:
    """The whole answer is an accepted one, apart from case, spaces and the marks around it."""
    text = without_marks(own_turn(marked_form(answer)))
    return any(given == gold for given, gold in _alike(_bare, text, accepted))


def grade_numeric(answer: str, accepted: Sequence[str]) -> bool:
    """The number, or the expression, that the text gives in the end equals an accepted one.

    Raises `NotJudged` where expressions cannot be compared.
    """
    verdict = _numeric_verdict(answer, accepted)
    return verdict if isinstance(verdict, bool) else verdict()


async def grade(grader: str, answer: str, accepted: Sequence[str]) -> bool:
    """What a grader says, without keeping others waiting while expressions are worked out.

    Raises `NotJudged`, as `grade_numeric` does.
    """
    if grader != "numeric":
        return GRADERS[grader](answer, accepted)
    verdict = _numeric_verdict(answer, accepted)
    return verdict if isinstance(verdict, bool) else await asyncio.to_thread(verdict)


Grader = Callable[[str, Sequence[str]], bool]
GRADERS: dict[str, Grader] = {
    "includes": grade_includes,
    "exact": grade_exact,
    "numeric": grade_numeric,
}


def problem_with(grader: str, answer: str) -> str | None:
    """Why an accepted answer cannot be read by its grader; None where it can."""
    if grader == "numeric":
        return _not_numeric(answer)
    is_empty = not folded(readable_form(answer)).strip()
    return f"nothing of {answer!r} is left but marks" if is_empty else None


def _not_numeric(answer: str) -> str | None:
    gold = gold_value(answer)
    try:
        can_be_read = isinstance(gold, Number) or (
            gold is not None and (in_other_base(gold) is not None or is_expression(gold))
        )
    except NotJudged as error:
        return f"{answer!r} cannot be read. {error}"
    return (
        None if can_be_read else f"{answer!r} is not a number, nor an expression that can be read"
    )


# --- numbers --------------------------------------------------------------------------------------


def _numeric_verdict(answer: str, accepted: Sequence[str]) -> bool | Callable[[], bool]:
    """Whether an answer is right; where expressions are to be worked out for it, what does that.

    Where an answer gives several values, an accepted one has to equal them all.
    """
    golds = [gold for one in accepted if (gold := gold_value(one)) is not None]
    values = final_values(
        answer,
        is_formula=any(isinstance(gold, str) for gold in golds),
        is_equation=any(map(is_unsolved, accepted)),
    )
    open_golds: list[Number | str] = []
    for gold in golds if values else ():
        verdicts = [_plain_verdict(value, gold) for value in values]
        if all(verdicts):
            return True
        if False not in verdicts:
            open_golds.append(gold)
    if not open_golds:
        return False
    return partial(_worked_out, values, open_golds)


def _plain_verdict(value: Value, gold: Number | str) -> bool | None:
    """None where an expression has to be worked out."""
    if isinstance(gold, str) or value.number is None:
        return None
    return _is_same(value.number, gold) or (None if value.expression is not None else False)


def _worked_out(values: Sequence[Value], golds: Sequence[Number | str]) -> bool:
    return any(all(_is_value(value, gold) for value in values) for gold in golds)


def _is_value(value: Value, gold: Number | str) -> bool:
    if not isinstance(gold, str):
        if _plain_verdict(value, gold) or value.expression is None:
            return bool(_plain_verdict(value, gold))
        if in_other_base(value.expression) is not None:
            return False
        worked_out = value_of(value.expression)
        return worked_out is not None and _is_same(Number(0, 0, worked_out), gold)
    in_base = in_other_base(gold)
    if in_base is not None or (value.expression is not None and in_other_base(value.expression)):
        return value.expression is not None and in_base == in_other_base(value.expression)
    if value.expression is not None:
        if are_set_and_point(gold, value.expression):
            return False
        return is_same_expression(gold, value.expression)
    assert value.number is not None
    worked_out = value_of(gold)
    return worked_out is not None and _is_same(value.number, Number(0, 0, worked_out))


def _is_same(given: Number, expected: Number) -> bool:
    """Of a percentage and a plain number, either way of writing it counts: 50% is 50 and 0.5."""
    assert given.value is not None and expected.value is not None
    one, other = given.value, expected.value
    if given.parts == expected.parts:
        return _is_close(one, other)
    if 1 in (given.parts, expected.parts):
        scaled = one / given.parts, other / expected.parts
        return _is_close(one, other) or _is_close(*scaled)
    return _is_close(one / given.parts, other / expected.parts)


def _is_close(one: Fraction, other: Fraction) -> bool:
    """Whole numbers are the same or not; others may differ by how they were rounded."""
    if one.denominator == other.denominator == 1:
        return one == other
    tolerance = min(RELATIVE_TOLERANCE * max(abs(one), abs(other)), MAX_TOLERANCE)
    return abs(one - other) <= tolerance


# --- words ----------------------------------------------------------------------------------------


def _alike(
    form: Callable[[str, bool], str], text: str, accepted: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yield a text beside each accepted answer, in a form that both have.

    Where that answer has a number that begins with a zero, as 007 does, such numbers are told apart
    by their digits, as names are.
    """
    read_ones: dict[bool, str] = {}
    for gold in map(readable_form, accepted):
        are_names = _LEADING_ZERO.search(gold) is not None
        if are_names not in read_ones:
            read_ones[are_names] = form(text, are_names)
        yield read_ones[are_names], form(gold, are_names)


def _words(text: str, are_names: bool) -> str:
    """A text in one case, in which equal numbers are written alike and apart from all words;
    `are_names` of those that begin with a zero."""
    parts: list[str] = []
    position = 0
    for span in spans_in(text):
        number = read(text, span)
        if number.start < position:
            continue
        parts += [text[position : number.start], _written(text, number, are_names)]
        position = number.end
    parts.append(text[position:])
    words = folded("".join(parts))
    return re.sub(rf"{_CLOSE} (?=[^\W\d_]|[{CURRENCIES}°])", _CLOSE, words)


def _written(text: str, number: Number, are_names: bool) -> str:
    """One name for each value; what has none is named by its signs."""
    before = text[max(0, number.start - 16) : number.start]
    digits = text[number.start : number.end]
    is_version = _LAST_ZERO.fullmatch(digits) is not None and _VERSION_OF.search(before) is not None
    is_name = is_version or (are_names and _LEADING_ZERO.search(digits) is not None)
    if number.value is None or number.is_ordinal or is_name:
        raw = "".join(digits.split())
        return f"{_OPEN}?{raw}{_CLOSE}"
    above, below = number.value.numerator, number.value.denominator
    mark = {1: "", 100: "%", 1000: "‰"}[number.parts]
    # in the base that has no limit of digits
    return f"{_OPEN}{above:x}/{below:x}{mark}{_CLOSE}{number.currency}"


def _stands_in(text: str, words: str) -> bool:
    if words in _YES or words in _NO:
        # "Yes, no doubt" says yes: the first of the two words is the answer.
        first = _POLAR.search(_BOTH_POLES.sub(" ", text))
        return first is not None and (first[0] in _YES) == (words in _YES)
    place = text.find(words) if words else -1
    while place >= 0:
        if _is_whole(text, place, place + len(words)):
            return True
        place = text.find(words, place + 1)
    return False


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether a place in a text begins and ends with a word, or with none."""
    return not (_is_cut_before(text, start) or _is_cut_behind(text, end))


def _is_cut_before(text: str, start: int) -> bool:
    first, last = text[start], text[start - 1 : start] if start else ""
    if is_unspaced(first) or not is_of_word(first) or is_unspaced(last):
        return False
    if is_of_word(last):
        return True
    lead = text[max(0, start - 8) : start]
    if last not in tuple(_JOINING_BEFORE) or _ELISION.search(lead):
        return False
    return is_of_word(lead[-2:-1]) and not is_unspaced(lead[-2:-1])


def _is_cut_behind(text: str, end: int) -> bool:
    last, following = text[end - 1], text[end : end + 1]
    if is_mark(following):
        return True
    if is_unspaced(last) or not is_of_word(last) or is_unspaced(following):
        return False
    if is_of_word(following):
        return True
    if following in ("*", "-") and _is_grade(text, end):
        return True
    if following in ("+", "#") and text[end : end + 2] != "+ ":
        return True
    if text.startswith("'s", end) and not is_of_word(text[end + 2 : end + 3]):
        return False
    beyond = text[end + 1 : end + 2]
    is_joined = following in tuple(_JOINING_AFTER) and is_of_word(beyond)
    return is_joined and not is_unspaced(beyond)


def _is_grade(text: str, place: int) -> bool:
    """Whether a "-" or "*" here belongs to the letter before it, as in "B-", and ends the text."""
    sign, letter, before = (text[at : at + 1] for at in (place, place - 1, max(0, place - 2)))
    if place < 1 or sign not in ("-", "*") or not letter.isalpha() or is_unspaced(letter):
        return False
    before = before if place > 1 else ""
    is_end = text[place + 1 : place + 2] in ("", *".,;!?)]\"'")
    return is_end and before != sign and not is_of_word(before)


def _bare(text: str, are_names: bool) -> str:
    """The words without brackets, quotation marks and punctuation of any script around them."""
    words = _words(text, are_names)
    start, end = 0, len(words)
    while start < end and _is_around(words[start]):
        start += 1
    while end > start and _is_around(words[end - 1]) and not _is_grade(words, end - 1):
        end -= 1
    return words[start:end] or words


def _is_around(char: str) -> bool:
    is_kept = char in _KEPT_AROUND
    return char.isspace() or char in "`|~" or (unicodedata.category(char)[0] == "P" and not is_kept)
