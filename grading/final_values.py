"""The values that an answer gives in the end, and an accepted one: numbers or expressions."""

from __future__ import annotations

import re
from typing import NamedTuple

from grading.answers import (
    LAST_MARK,
    NEXT_QUESTION,
    answering_part,
    boxes_in,
    final_boxes,
    final_numbers,
    last_numbers,
    own_turn,
    thinks_again,
)
from grading.beside_values import with_what_belongs
from grading.expressions import (
    LONGEST,
    exact_and_rounded,
    expression,
    first_formula,
    formula_alone,
    in_other_base,
    is_unsolved,
    last_formula,
)
from grading.latex import BOX, END_OF_BOX
from grading.markdown import without_html
from grading.normal_form import marked_form, readable_form, without_marks, written_form
from grading.numbers import CURRENCIES, Number, read, spans_in

_AROUND_NUMBER = " \n\t\"'()[],;:!?="
_UNIT = re.compile(r"(?: ?[^\W\d_]+[\d²³]?[.]?(?:\^-?\d)?(?: ?/ ?[^\W\d_]+(?:\^-?\d)?)?){0,3}")
# "2x" is a product where "5km" is a number with its unit; "2 x" is one in a formula.
_VARIABLE = re.compile(r"[\d}\s]\s*[xyz](?![A-Za-z])")
_SURELY_VARIABLE = re.compile(r"[xyz]\s*\^|[xyz]{2}|\d[xyz](?![A-Za-z])")
_FACTORIAL = re.compile(r"(?<!\\)!")
_PAIR = re.compile(r"[(\[]\s*-?\d+,\s*-?\d+\s*[)\]]")  # two numbers, or one with a comma
_FINAL_LINE = re.compile(r"^[ \t]*####[ \t]+(\S.*)$", re.MULTILINE)
_BOX_BEGINS = re.compile(rf"\\(?:boxed|fbox|framebox)[ \t]*\{{|{BOX}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)

_OR_BEFORE = re.compile(r"[\s,]*\b(?:or|oder|ou)\b\s*$")
_IS_ANSWER = re.compile(r"\s+(?:is|are)\s+(?:the|our|my)\s+(?:[a-z]+\s+)?answers?\W*$")
_SAYS = re.compile(r"\b(?:is|are|equals?|gives?|gets?|becomes?)\s|:\s")
_END_OF_SENTENCE = re.compile(r"\n|[.;](?=\s|$)")
MOST_EXPRESSIONS = 8  # that are compared for one answer
LONGEST_ANSWER = 200  # characters of an answer that is looked at as a whole


class Value(NamedTuple):
    """A value in one or two ways of writing it: as a number that is read here, and as LaTeX."""

    number: Number | None
    expression: str | None = None


def number_alone(text: str) -> Number | None:
    """A text that is one number, with its unit at most; None for any other."""
    plain = readable_form(text).rstrip(_AROUND_NUMBER + ".").lstrip(_AROUND_NUMBER)
    spans = spans_in(plain)
    if len(spans) != 1:
        return None
    number = read(plain, spans[0])
    before, behind = plain[: number.start].strip(), plain[number.end :].strip()
    is_alone = not before or before in CURRENCIES or re.fullmatch(r"[A-Z]{1,3}|Rs\.?", before)
    has_unit = _UNIT.fullmatch(re.sub(r"[°$€£¥/]", "", behind)) is not None
    return number if number.value is not None and is_alone and has_unit else None


def gold_value(text: str) -> Number | str | None:
    """An accepted answer: a number, or the LaTeX of an expression; None for what is neither."""
    written = written_form(text)
    if in_other_base(formula_alone(written) or written) is not None:
        return formula_alone(written) or written
    number = number_alone(text)
    formula = formula_alone(written)
    is_variable = _VARIABLE.search(written) and (formula or _SURELY_VARIABLE.search(written))
    if number is not None and not is_variable and not _PAIR.search(written):
        return number
    is_formula = formula is not None or bool(is_variable)
    return expression(formula or written, is_formula=is_formula) or number


def final_values(
    answer: str, *, is_formula: bool = False, is_equation: bool = False
) -> list[Value]:
    """What an answer comes to; several values where it leaves open which, none where it gives none.

    `is_formula` says that letters and signs are expected, so that an answer without any delimiters
    may be one; `is_equation` that an equation is, which else has no value unless it is solved.
    """
    answer = with_what_belongs(answer)
    marked = own_turn(marked_form(answer))
    text = answering_part(marked)
    source = own_turn(without_html(written_form(answer)))
    if len(text) < len(marked) and (match := NEXT_QUESTION.search(source)) is not None:
        source = source[: match.start()]
    if boxes := final_boxes(text):
        sources = _boxes_in_source(source)
        if len(sources) == len(boxes_in(text)):
            sources = sources[-len(boxes) :]
            if not is_equation and any(is_unsolved(_formula_of(box)) for box in sources):
                return []
            return _in_boxes([box[1] for box in boxes], sources)
        return [Value(number) for number in final_numbers(text)]
    numbers = final_numbers(text)
    if len(parts := _open_formulas(source)) > 1:
        values = [_as_expression(part, [], is_formula=True) for part in parts]
        if any(value is not None for value in values):  # else they are numbers, read below
            others = [last_numbers(readable_form(f"${part}$")) for part in parts]
            return [
                one
                for value, numbers in zip(values, others, strict=True)
                for one in ([value] if value is not None else [Value(n) for n in numbers])
            ]
    part = _final_part(source, is_formula)
    ends = (source.strip(), part[0] if part is not None else "")
    if not is_equation and any(map(is_unsolved, ends)):
        return []
    value = None if part is None else _as_expression(part[0], numbers, is_formula=part[1])
    if value is not None:
        return [value]
    return [Value(number) for number in numbers]


def _as_expression(part: str, numbers: list[Number], *, is_formula: bool) -> Value | None:
    """A part of an answer that is an expression; `numbers` are what is read of it otherwise."""
    exact, rounded = exact_and_rounded(part)
    latex = expression(exact, is_formula=is_formula)
    if latex is None:
        return None
    if in_other_base(latex) is not None:
        return Value(None, latex)
    ways = (exact, f"${exact}$", latex) if is_formula else (exact, latex)
    is_number = any(number_alone(one) is not None and not _PAIR.search(one) for one in ways)
    if is_number and not (is_formula and _FACTORIAL.search(exact)):
        return Value(None, latex) if is_formula and _VARIABLE.search(latex) else None
    is_rounded = rounded != exact and bool(numbers)
    return Value(numbers[-1] if is_rounded else None, latex)


def _formula_of(source: str) -> str:
    """The formula that a box is, or ends with; what stands in it where it has none."""
    if (formula := formula_alone(source)) is not None:
        return formula
    ending = last_formula(source)
    return source if ending is None else ending[1]


def _in_boxes(texts: list[str], sources: list[str]) -> list[Value]:
    """Those of all boxes; an earlier one that holds but words says nothing about a number."""
    found: list[Value] = []
    for index, (text, source) in enumerate(zip(texts, sources, strict=True)):
        numbers = last_numbers(without_marks(text), is_box=True)
        value = _as_expression(_formula_of(source), numbers, is_formula=True)
        values = [Value(number) for number in numbers] if value is None else [value]
        if not values and (index == len(texts) - 1 or re.search(r"\d", text)):
            return []
        found += values
    different = {value.expression for value in found}
    return found if len(different) <= MOST_EXPRESSIONS else []


def _boxes_in_source(source: str) -> list[str]:
    """What stands in the boxes of a text whose LaTeX is not read; none of them holds another."""
    found: list[str] = []
    position = 0
    while (begin := _BOX_BEGINS.search(source, position)) is not None:
        end = _end_of_box(source, begin.end(), is_tag=begin[0] == BOX)
        if end < 0:
            break
        found.append(source[begin.end() : end])
        position = end + 1
    return found


def _end_of_box(source: str, start: int, *, is_tag: bool) -> int:
    if is_tag:
        return source.find(END_OF_BOX, start)
    depth = 1
    for match in _BRACE.finditer(source, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return -1


def _open_formulas(source: str) -> list[str]:
    """The formulas that end a text with an "or" between them; the last one alone without that."""
    found: list[str] = []
    source = source.rstrip()[-LONGEST:]
    while (formula := last_formula(source)) is not None:
        found.insert(0, formula[1])
        if (joined := _OR_BEFORE.search(source[: formula.start()])) is None:
            break
        source = source[: joined.start()]
    return found


def _final_part(source: str, is_formula: bool) -> tuple[str, bool] | None:
    """The part of a text without a box that says its value, and whether it is a formula."""
    if lines := _FINAL_LINE.findall(source):
        formula = formula_alone(lines[-1])
        return formula or lines[-1], is_formula or formula is not None
    if (part := _behind_mark(source)) is not None:
        formula = first_formula(part)
        if formula is not None:
            return formula, True
        return _END_OF_SENTENCE.split(part)[0], is_formula
    end = source.rstrip()[-LONGEST:]
    if (named := _IS_ANSWER.search(end)) is not None:
        end = end[: named.start()]
    if (formula := last_formula(end)) is not None:
        return formula[1], True
    if len(end) <= LONGEST_ANSWER and expression(end, is_formula=is_formula) is not None:
        return end, is_formula
    behind = _SAYS.split(end.rpartition("\n")[2])
    return (behind[-1], is_formula) if len(behind) > 1 else None


def _behind_mark(source: str) -> str | None:
    """What follows the last "answer is", up to the text's end."""
    marks = list(LAST_MARK.finditer(source))
    if not marks:
        return None
    place = marks[-1].end()
    while source[place - 1] in "([":
        place -= 1
    rest = source[place:].lstrip(" *_\n")
    return None if thinks_again(rest) else rest
