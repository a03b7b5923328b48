"""What a written number comes to, exactly; None for what has no value of its own.

No float takes part, so that whole numbers of any length can be told apart, and nothing is worked
out that would be larger than a page.
"""

# ruff: noqa: RUF001 - signs that look alike are what is told apart here
from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

MAX_POWER_BITS = 40_000  # of what a power may come to: some 12,000 digits
MAX_PLACES = 5_000  # digits after the point

_EXPONENT = re.compile(r"(.*?)[eE]([-+]?\d{1,6})", re.DOTALL)
_FORMS = (
    re.compile(r"(?P<whole>\d+)"),
    re.compile(r"(?P<whole>\d*)\.(?P<places>\d+)"),
    # thousands: 1,234.5  12,34,567  1'234  1_000  1 234,5  1.234,5  1.234.567
    re.compile(r"(?P<whole>[1-9]\d{0,2}(?:,\d{3})+)(?:\.(?P<places>\d+))?"),
    re.compile(r"(?P<whole>[1-9]\d?(?:,\d{2})+,\d{3})(?:\.(?P<places>\d+))?"),
    re.compile(r"(?P<whole>[1-9]\d{0,2}(?:['_]\d{3})+)(?:[.,](?P<places>\d+))?"),
    re.compile(r"(?P<whole>[1-9]\d{0,2}(?: \d{3})+)(?:[.,](?P<places>\d+))?"),
    re.compile(r"(?P<whole>[1-9]\d{0,2}(?:\.\d{3})+),(?P<places>\d+)"),
    re.compile(r"(?P<whole>[1-9]\d{0,2}(?:\.\d{3}){2,})"),
    # a decimal comma, where no thousands can be meant
    re.compile(r"(?P<whole>\d+),(?P<places>\d+)"),
)
_ADDRESS = re.compile(r"(?:[12]?\d{1,2}\.){3}[12]?\d{1,2}")


def value_of(pieces: Sequence[tuple[str | None, str]]) -> Fraction | None:
    """The value of numbers joined by signs: a fraction, a mixed number, a power, or one alone.

    Each piece is what joins it to the one before, and its digits.
    """
    if len(pieces) > 5:
        return None
    values = [value for _, number in pieces if (value := plain_value(number)) is not None]
    if len(values) < len(pieces):
        return None
    joins = [_sign(join) for join, _ in pieces[1:]]
    signs, is_negative = "".join(sign for sign, _ in joins), bool(joins) and joins[-1][1]
    if any(negative for _, negative in joins[:-1]):
        return None
    last = -values[-1] if is_negative else values[-1]
    match signs:
        case "" if len(values) == 1:
            return values[0]
        case "/":
            return values[0] / last if last else None
        case "|":  # 3分の1 is a third
            return last / values[0] if values[0] else None
        case " /":
            is_proper = values[0].denominator == 1 and 0 < values[1] < last
            return values[0] + values[1] / last if is_proper else None
        case "^":
            return _power(values[0], last)
        case "*^" if values[1] == 10:
            power = _power(values[1], last)
            return None if power is None else values[0] * power
    return None


def _sign(join: str | None) -> tuple[str, bool]:
    """One character for each sign, and whether a minus follows it."""
    sign = (join or "").strip()
    is_negative = len(sign) > 1 and sign[-1] == "-"
    sign = sign.rstrip("+-").strip() or sign
    names = {"": " ", "and": " ", "**": "^", "x": "*", "X": "*", "×": "*", "·": "*"}
    names |= dict.fromkeys(("分の", "分之", "분의"), "|")
    return names.get(sign, sign[:1] if len(sign) == 1 else "?"), is_negative


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator > 1 or (base == 0 and exponent < 0):
        return None
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > MAX_POWER_BITS:
        return None
    return base ** int(exponent)


def plain_value(text: str) -> Fraction | None:
    """The value of digits with their separators: "1,234.5", "3,5", "1.2e3"."""
    text = re.sub(r"^[^\d.]+", "", text)
    exponent = 0
    if (match := _EXPONENT.fullmatch(text)) is not None:
        text, exponent = match[1], int(match[2])
    if _ADDRESS.fullmatch(text):
        return None
    match = next((m for form in _FORMS if (m := form.fullmatch(text)) is not None), None)
    if match is None:
        return None
    places = match.groupdict().get("places") or ""
    if len(places) > MAX_PLACES or abs(exponent) * 4 > MAX_POWER_BITS:
        return None
    digits = re.sub(r"\D", "", match["whole"]) + places
    shift = exponent - len(places)
    value = Fraction(whole_number(digits))
    return value * 10**shift if shift >= 0 else value / 10**-shift


def whole_number(digits: str) -> int:
    """Python's `int` of any number of digits, in halves: it refuses more than some thousands."""
    if len(digits) <= 4000:
        return int(digits or "0")
    middle = len(digits) // 2
    return whole_number(digits[:-middle]) * 10**middle + whole_number(digits[-middle:])
