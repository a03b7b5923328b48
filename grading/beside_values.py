r"""What stands beside a value and belongs to it: "not 5" is no value, `-\boxed{5}` is -5.

A text is rewritten before it is read: what it denies is taken out, and so is the modulus of a
congruence, "(mod 7)"; a sign, a percent sign or a "million" beside a box is put into it. A box that
is but a part of a term is emptied.
"""

# ruff: noqa: RUF001 - signs that look alike are what is told apart here
from __future__ import annotations

import re

_BOXED = r"\\(?:boxed|fbox|framebox)[ \t]*\{((?:[^{}]|\{[^{}]*\}){0,200})\}"
_NUMBER = (
    rf"(?:{_BOXED}|\\[dtc]?frac\{{[^{{}}]{{1,40}}\}}\{{[^{{}}]{{1,40}}\}}"
    r"|\\?[$€£]?[-+−]?\\?[$€£]?\d+(?:[.,:/^'_]\d+)*(?: \d+/\d+)?)"
)
_DENIED = re.compile(
    r"((?:(?<!\()\b(?:not|isn['’]t|isnt|no longer|rather than|instead of)(?: equal(?:s| to)?)?"
    r"(?![A-Za-z'-])"
    r"|≠|(?<![\d)])!=|\\neq?(?![A-Za-z])|\\not[ \t]*=)"
    rf"[^\S\n]*[*_`$\"'“(\[{{}}]{{0,4}}[^\S\n]*){_NUMBER}"
    rf"(?:[ \t]+(?:or|nor|and)[ \t]+{_NUMBER})?(?![\w])",
    re.IGNORECASE,
)
_SPACE = r"(?:\\[,!;: ]|~)?"
_BOX = re.compile(
    rf"((?:(?:^|(?<=[\s:({{\[]))[-−]|(?<=[$=])[ \t]*[-−][ \t]*){_SPACE})?{_BOXED}"
    r"(?:(\$|\\\)|\*\*)?[ \t]?(\\?%|"
    r"(?:percent|per cent|hundred|thousand|million|billion|trillion)\b))?",
    re.MULTILINE,
)
_PART_BEFORE = re.compile(
    r"(?:\d|(?:\\cdot|\\times)[ \t]*|[×·/^] ?|\\sqrt\{?"
    r"|\\[dtc]?frac[ \t]*(?:\{[^{}]*\}[ \t]*)?\{[^{}]*)\Z"
)
_PART_BEHIND = re.compile(r"[ \t]*(?:\^(?![ \t{]*(?:\\circ|°))|\\pi(?![A-Za-z])|π|\\sqrt|√)")
_BLANK = re.compile(r"[ \t]*=")  # 3 \times \boxed{4} = 12 fills in what is asked for
_PLAIN = re.compile(r"[-+]?(?:\\?[$€£])?[\d.,{}\\! ]*\d[}]?")
_MOD = r"(?:\\(?:text|mathrm|operatorname|textrm) ?\{ ?|\{?\\rm ?|\\[bp]?)?mod(?:ulo)?(?![A-Za-z])"
_MODULUS = re.compile(
    rf"(?:\\(?:left|[bB]igg?l?) ?)?[(\[](?:\\[ ,;:!]|[ ~]){{0,3}}{_MOD}[^()\[\]\n]{{1,40}}[)\]]"
    r"|\\p?mod(?![A-Za-z]) ?(?:\{[^{}\n]{1,40}\}|[A-Za-z]|\d{1,20})",
    re.IGNORECASE,
)
_OF_CONGRUENCE = re.compile(
    r"((?:≡|\\equiv(?![A-Za-z])|\bcongruent to)[^\n≡=]{1,40}?),? (?:mod|modulo) \w{1,20}",
    re.IGNORECASE,
)
_WINDOW = 80  # characters before a box that are looked at


def with_what_belongs(text: str) -> str:
    """The text without the numbers that it denies and without moduli, and with its boxes whole."""
    if "mod" in text.lower():
        text = _OF_CONGRUENCE.sub(r"\1", _MODULUS.sub("", text))
    if "{" in text:
        text = _BOX.sub(_whole_box, text)
    return _DENIED.sub(r"\1 ", text)


def _whole_box(match: re.Match[str]) -> str:
    sign, value, closing, unit = match[1], match[2].strip(), match[3], match[4]
    before = match.string[max(0, match.start() - _WINDOW) : match.start()]
    is_part = _PART_BEFORE.search(before) and not _BLANK.match(match.string, match.end())
    if is_part or _PART_BEHIND.match(match.string, match.end()):
        return r"\boxed{}"
    is_plain = _PLAIN.fullmatch(value) is not None
    if not value or (sign is None and (unit is None or not is_plain)):
        return match[0]
    if sign is not None and value[0] in "-−":
        value = value[1:]
    elif sign is not None:
        is_alone = is_plain or re.fullmatch(r"\\[dtc]?frac\{\d+\}\{\d+\}", value)
        value = f"-{value}" if is_alone else f"-({value})"
    return rf"\boxed{{{value} {unit or ''}}}{closing or ''}"
