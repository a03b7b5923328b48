"""The numbers in a text, as exact values, and where they stand.

What belongs together is read together or not at all: "3:30", "1.2.3", "1939-1945" and "2 + 3" look
like numbers and have no value here, rather than the value of one of their parts. A word that holds
digits (CO2, GPT-4) is a word.
"""

# ruff: noqa: RUF001 - signs that look alike are what is told apart here
from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from grading.arithmetic import value_of
from grading.scripts import is_mark, is_unspaced

CURRENCIES = "$¢£¤¥֏؋৲৳৻૱௹฿៛₠₡₢₣₤₥₦₧₨₩₪₫€₭₮₯₰₱₲₳₴₵₶₷₸₹₺₻₼₽₾₿"

_PLAIN = (
    r"(?:\d{1,3}(?: \d{3})+(?!\d)(?:[.,]\d+)?(?![.,:]?\d)"  # 1 234 567.89
    r"|\d+(?:[.,'_]\d+)*"
    r"|(?<![\w.])\.\d+)"
)
_ONE = rf"(?:[{CURRENCIES}] ?)?{_PLAIN}(?:[eE][-+]?\d+(?!\w))?"
# What joins numbers to one: a sign of arithmetic, a colon, a bracket, or nothing but a space.
_JOIN = (
    r"(?:(?: ?%)?(?: ?(?:\*\*|\.{2,3}|[-+*/×·÷^±~]|[xX](?= ?\d)) ?[-+]?|:)"
    rf"| and (?=\d+ ?/ ?\d)| (?:plus|minus|times|moins|menos|meno|минус) "
    rf"| ?(?:分[の之]|분의) ?| (?=[{CURRENCIES}\d.])|\.?\((?=\d))"
)
_CLUSTER = re.compile(rf"{_ONE}(?:{_JOIN}{_ONE})*")
_PIECE = re.compile(rf"(?P<join>{_JOIN})?(?P<number>{_ONE})")
_URL = re.compile(r"(?:https?://|www\.)\S+")
_REST_OF_WORD = re.compile(r"(?:[A-Za-z0-9_]|[-.:/](?=[A-Za-z0-9]))*")

# --- what stands before ---
_CODE = re.compile(r"(?:(?<![A-Za-z])[A-Z]{1,3} ?|Rs\.? ?)$")
_SIGN = re.compile(r"([-+]+)( ?)$")
_NEGATIVE = re.compile(
    r"(?:\b(?:minus|negative|минус|(?<!au )(?<!ou )(?<!le )(?<!du )moins"
    r"|(?<!al )(?<!lo )(?<! o )menos"
    r"|(?<! o )meno)\s+|(?:(?<!正)[负負]|マイナス|零下|영하|마이너스|ลบ)\s?)$",
    re.IGNORECASE,
)
_EITHER_SIGN = re.compile(r"(?:\bplus\s*(?:or|/|-)\s*minus|\+\s?(?:/|or)\s?-)\s*$", re.IGNORECASE)
# After these a dash with a space behind it is a sign; after another word it is a pause.
_VALUE_FOLLOWS = re.compile(
    r"(?:^|\n|[=:(\[{,;<>≤≥≈~|?!.\"']"
    r"|\b(?:is|are|was|be|equals?|to|of|at|by|than|from|about|gives?|gets?|yields?))\s*$",
    re.IGNORECASE,
)
_AFTER_MEASURE = re.compile(r"\d ?(?:[^\W\d_]{1,4}|[°%])\s?$")
_IN_WORK = re.compile(
    r"(?:[/^*×·÷√±]\s?\(?|\\\w+\(|\b(?:sqrt|log|ln|sin|cos|tan|exp)\s?\()\s?[-+]?$"
)
_WORK_IN_WORDS = re.compile(
    r"(?:\b(?:half|third|quarter|fourth|fifth|tenth|root|log|logarithm|base \d+|power) of(?: the)?"
    r"|\b(?:divided|multiplied) by|\d (?:over|choose|to the)|\bmod(?:ulo)?|\b(?:twice|thrice)"
    r"|(?:\b(?:in|to|into) |\()base)\s$",
    re.IGNORECASE,
)
_EXPONENT = re.compile(r"[^\W\d_](?:\^|\*\*)[-+]?$")
_VARIABLE = re.compile(r"(?<![^\W_])[a-z]$")
_HEBREW = re.compile(r"[\u0590-\u05ff]$")
_LARGER_UNIT = re.compile(
    r"\d ?(?:h|hrs?|hours?|min|mins|minutes?|ft|feet|foot|lbs?|pounds?|°|years?|yrs?|days?|weeks?)"
    r"[, ]*(?:and )?$|\d ?[年月时時点點分년월시분] ?$"
)
_LARGER_MEASURE = re.compile(r"\d ?([a-z]+)(?:,? and |,? ?)$", re.IGNORECASE)
# --- what stands behind ---
_SMALLER_MEASURE = re.compile(r" ?([a-z]+)\b", re.IGNORECASE)
_SMALLER = re.compile(
    r"(?:kg|kilo(?:gram)?s?) (?:g|grams?)|km (?:m|met(?:er|re)s?)|l ml|cm mm"
    r"|(?:m|met(?:er|re)s?) (?:[cm]m|(?:centi|milli)met(?:er|re)s?)"
    r"|(?:dollars?|euros?) cents?|pounds? (?:pence|p)"
)
_BELOW_ZERO = re.compile(
    r"\s?(?:°\s?[CF]?|degrees?(?: celsius| fahrenheit)?)?\s?\bbelow zero\b", re.IGNORECASE
)
_UNFINISHED = re.compile(
    r"\s?(?:\^|\*\*)|\s?[√π∞]|\s?pi\b|\s?sqrt\b|\s?[+*×·]\s?[A-Za-z]\b|\s?-\s?[b-hj-z]\b"
    r"|\s(?:halves|thirds|quarters|fourths|fifths|sixths|eighths|tenths|(?:hundred|thousand)ths)\b"
    r"|\s?[/*×·÷]\s?\(|\.?\(\d|i\b"
    r"| (?:squared|cubed)\b| (?:divided by|multiplied by|over|choose|to the power of) \d"
    r"|\.?\\|_\(?\w| ?[年月时時点點分년월시분] ?\d"
)
# What the 0 of 0b101, 0o17 and 0xff begins.
_OTHER_BASE = re.compile(r"(?:[bB][01]|[oO][0-7]|[xX][0-9A-Fa-f])[0-9A-Fa-f]*(?!\w)")
_PERCENT = re.compile(r"\s?(?:%|(?:percent|per cent|pct|prozent)\b)", re.IGNORECASE)
_GLUED = re.compile(r"[^\W\d_]+")
_UNIT_POWER = re.compile(r"(?:[cdkmnµμ]?m|in|ft|yd)[23](?!\w)")
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
_MILLION = "millions?|millionen|millones|millón|milioni|milhões|mio|mn|миллион(?:ов|а)?|млн"
_BILLION = "billions?|bn|mrd|milliard(?:en?|s)?|miliardi|миллиард(?:ов|а)?|млрд"
_SCALES = (
    (re.compile(r" ?mil(?= millones\b)", re.IGNORECASE), 1000),
    (re.compile(r" ?hundred\b", re.IGNORECASE), 100),
    (re.compile(r"[kK](?!\w)| ?(?i:thousand)\b"), 1000),
    (re.compile(r" ?lakhs?\b", re.IGNORECASE), 10**5),
    (re.compile(rf"M(?!\w)| ?(?i:{_MILLION})\b"), 10**6),
    (re.compile(r" ?crores?\b", re.IGNORECASE), 10**7),
    (re.compile(rf"B(?!\w)| ?(?i:{_BILLION})\b"), 10**9),
    (re.compile(r" ?(?:trillions?|tn|billionen|billones)\b", re.IGNORECASE), 10**12),
    (re.compile(r" ?dozens?\b", re.IGNORECASE), 12),
    (re.compile(r" ?百(?=[万萬億亿])"), 100),
    (re.compile(r" ?千(?![克米瓦卡字伏赫帕焦吨噸])| ?천(?![가-힣])"), 1000),
    (re.compile(r" ?[万萬만]"), 10**4),
    (re.compile(r" ?[亿億억]"), 10**8),
)
_WINDOW = 48  # characters before and behind a number that are looked at
_OPENED, _CLOSED = "([{", ")]}"


class Span(NamedTuple):
    """Where the digits of a number, or of several that are joined, stand."""

    start: int
    end: int


class Number(NamedTuple):
    """What stands at a span: sign, currency and percent sign included.

    `value` is as written (50 for "50%"); None for what cannot be read. `parts` is what makes one:
    100 where it is a percentage, 1000 for one in a thousand, else 1.
    """

    start: int
    end: int
    value: Fraction | None
    parts: int = 1
    currency: str = ""
    is_ordinal: bool = False


def spans_in(text: str) -> list[Span]:
    """Where numbers and what looks like them stand, in order."""
    text = _URL.sub(lambda match: "\n" * len(match[0]), text)
    spans: list[Span] = []
    position = 0
    while (match := _CLUSTER.search(text, position)) is not None:
        if _is_in_word(text, match.start()):
            rest = _REST_OF_WORD.match(text, match.start())
            position = max(match.start() + 1, rest.end() if rest is not None else 0)
        else:
            spans.append(Span(*match.span()))
            position = match.end()
    return spans


def read(text: str, span: Span) -> Number:
    """Read what stands at a span."""
    start, end = span
    cluster = text[start:end]
    currency = cluster[0] if cluster[0] in CURRENCIES else ""
    before, behind = text[max(0, start - _WINDOW) : start], text[end : end + _WINDOW]
    sign, length = _sign(before)
    start -= length
    value = None
    if sign is not None and _LARGER_UNIT.search(before) is None:
        value = value_of([(m["join"], m["number"]) for m in _PIECE.finditer(cluster)])
    is_pair = before[-1:] in tuple(_OPENED) and behind[:1] in tuple(_CLOSED)
    if (
        is_pair
        and re.fullmatch(r"\d+,\d+", cluster)
        and value is not None
        and value.denominator > 1
    ):
        value = None  # two numbers, or one with a decimal comma
    is_prefix = cluster == "0" and _OTHER_BASE.match(behind) is not None
    if is_prefix or _UNFINISHED.match(behind) or _is_smaller_part(before, behind):
        value = None
    parts, width = _parts(behind)
    end += width
    is_ordinal = False
    factor, width = _scale(behind) if width == 0 else (1, 0)
    glued = _GLUED.match(behind)
    if width:
        end += width
        value = None if value is None or behind[width : width + 1].isdigit() else value * factor
    elif glued is not None and parts == 1:
        is_ordinal = _ORDINAL.match(behind) is not None
        is_joined = behind[glued.end() : glued.end() + 1].isdigit()
        if is_joined and not is_unspaced(glued[0][-1]) and _UNIT_POWER.match(behind) is None:
            value = None
    if value is not None and sign is not None:
        value *= -1 if sign == 1 and _BELOW_ZERO.match(behind) else sign
    return Number(start, end, value, parts, currency, is_ordinal)


def _is_in_word(text: str, start: int) -> bool:
    """Whether digits are part of a word (CO2, GPT-4), or the exponent of a unit or a variable."""
    before = text[max(0, start - _WINDOW) : start]
    if _EXPONENT.search(before):
        return True
    if text[start] in CURRENCIES:
        return False
    last = before[-1:]
    if last == "-" and before[-2:-1].isalpha():
        word = before[:-1]
        return not (is_unspaced(word[-1]) or _VARIABLE.search(word) or _HEBREW.search(word))
    return last == "_" or (
        (last.isalpha() or (last != "" and is_mark(last))) and not is_unspaced(last)
    )


def _sign(before: str) -> tuple[int | None, int]:
    """The sign of a number, None where it is part of some work, and how far it stands before it."""
    if (match := _EITHER_SIGN.search(before)) is not None:
        return None, len(before) - match.start()
    for lead in (before, _CODE.sub("", before)):
        if (match := _SIGN.search(lead)) is None:
            continue
        sign = -1 if match[1] == "-" else 1
        length = len(before) - match.start()
        word = lead[: match.start()]
        if len(match[1]) > 1 or _IN_WORK.search(word):
            return None, length
        if match[2]:  # a space behind the sign
            if _VALUE_FOLLOWS.search(word):
                return sign, length
            if _AFTER_MEASURE.search(word) or word[-1:] in (*_CLOSED, *word[-1:].strip()):
                return None, length
            return 1, 0
        last = word[-1:]
        if _HEBREW.search(word):
            return 1, 0
        is_joined = last.isalnum() and not is_unspaced(last)
        return (None if is_joined or last in tuple(_CLOSED) else sign), length
    if _IN_WORK.search(before) or _WORK_IN_WORDS.search(before):
        return None, 0
    if (match := _NEGATIVE.search(before)) is not None:
        return -1, len(before) - match.start()
    return 1, 0


def _is_smaller_part(before: str, behind: str) -> bool:
    """Whether a measure goes on with a number: the 200 of "3 kg 200 g"."""
    larger, smaller = _LARGER_MEASURE.search(before), _SMALLER_MEASURE.match(behind)
    if larger is None or smaller is None:
        return False
    return _SMALLER.fullmatch(f"{larger[1]} {smaller[1]}".lower()) is not None


def _parts(behind: str) -> tuple[int, int]:
    if (match := _PERCENT.match(behind)) is not None:
        return 100, match.end()
    match = re.match(r"\s?‰", behind)
    return (1, 0) if match is None else (1000, match.end())


def _scale(behind: str) -> tuple[int, int]:
    """What words such as "million" multiply by, and their length."""
    factor, position = 1, 0
    for _ in range(3):
        found = [(one, m) for pattern, one in _SCALES if (m := pattern.match(behind, position))]
        if not found:
            break
        one, match = found[0]
        factor, position = factor * one, match.end()
    return factor, position
