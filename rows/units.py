"""Texts as what questions are compared by: words, or characters where a script has no spaces.

Small words say nothing of what is asked: fifty English ones, and particles of Chinese and Japanese
where they stand as such. Lists of languages are not merged ("die", "on" and "me" are other words
elsewhere). Clauses are what marks and line ends divide. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from rows.words import OPERATORS, Words, normalise

_SMALL = """
a an the this that these those is are was were be been am do does did can could would will of in at
for i you me my we our us your s re ll ve d m please kindly thanks thank hi hello hey so just also
then
"""
SMALL_WORDS = frozenset(_SMALL.split())
# Words that make another question of a text wherever they stand, beside numerals and operators.
_DECIDING = """
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand
million billion half twice double triple not t no never except without cannot
二 三 四 五 六 七 八 九 十 百 千 万 亿 億 不 没 非
"""
DECIDING_WORDS = frozenset(_DECIDING.split())
# Han, kana, Thai, Lao, Khmer and Burmese are written without spaces.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_PARTS = re.compile(f"[{_UNSPACED}]|[^{_UNSPACED}]+")
_HIRAGANA = re.compile("[\u3040-\u309f]")
_CHINESE_ANYWHERE = frozenset("的")
_CHINESE_AT_END = frozenset("了吗嗎呢啊吧呀嘛")
_CHINESE_AT_START = ("请问", "請問", "请", "請")
_JAPANESE = frozenset("はがをのかねよ")
_JAPANESE_AT_END = frozenset("かねよ")

# A mark ends a clause before a space or the text's end: "3.5" and "12:30" have none. Whitespace
# does in scripts that have no other.
_CLAUSE_END = re.compile(
    r"[\n\r\t\x0b\x0c\u2028\u2029]"
    r"|(?<![.!?;:,\u2026])[.!?;:,\u2026]++(?=[\"'\u201d\u2019)\]*_]*+(?:\s|$))"
    r"|[\u3002\uff01\uff1f\uff1b\uff1a\uff0c\u3001()\[\]{}\"\u201c\u201d\u00ab\u00bb|<>]"
    r"|[\u300c\u300d\u300e\u300f\uff08\uff09\u2022\u2014]"
    r"|(?<![\d\s])\s[-\u2013*#]+(?=\s\D)"
    r"|(?<!\w)['\u2018]|['\u2019](?!\w)"
    f"|(?<=[{_UNSPACED}])\\s+(?=[{_UNSPACED}])"
)
# Letters that are no rest of "what's" or "I'd", and small words in capitals amid a clause: names.
_LETTER = re.compile(r"(?<![\w'\u2019])[dms](?!\w)", re.IGNORECASE)
_CAPITALS = re.compile(r"(?<=[\w,;] )(?:A|[A-Z]{2,})(?![\w'\u2019])")


class Units(NamedTuple):
    """A text's units, and those of them that are no small words."""

    all: Words
    content: Words


def units_of(text: str) -> Words:
    """The words of a text as `normalise` has them, and single characters of scripts without
    spaces."""
    flat = normalise(text)
    if flat.isascii() or not _IS_UNSPACED.search(flat):
        return tuple(flat.split())
    return tuple(part for word in flat.split() for part in _PARTS.findall(word))


def read_units(text: str) -> Units:
    """The units of a text, and which of them are content."""
    flat = normalise(text)
    words = flat.split()
    if flat.isascii() or not _IS_UNSPACED.search(flat):
        return Units(tuple(words), tuple([word for word in words if word not in SMALL_WORDS]))
    units: list[str] = []
    content: list[str] = []
    for word in words:
        parts = _PARTS.findall(word)
        units += parts
        content += _without_particles(parts)
    return Units(tuple(units), tuple(content))


def content_of(text: str, units: Words) -> Words:
    """Those of a text's units that are no small words."""
    if text.isascii():  # where a word is what it is wherever it stands
        return tuple([word for word in units if word not in SMALL_WORDS])
    return read_units(text).content


def _without_particles(parts: list[str]) -> list[str]:
    """The units of one word without small ones; whether a character is a particle depends on
    where it stands ("のり" is a word, and so is "了解")."""
    kept: list[str] = []
    last = len(parts) - 1
    word = "".join(parts)
    start = next((len(one) for one in _CHINESE_AT_START if word.startswith(one)), 0)
    for position in range(start, len(parts)):
        part = parts[position]
        is_at_end = position == last
        if part in _JAPANESE:
            # After another kana it may be part of a word, except where a sentence ends.
            is_after_word = position > 0 and not _HIRAGANA.match(parts[position - 1])
            is_small = is_after_word or (is_at_end and part in _JAPANESE_AT_END)
        elif part in _CHINESE_AT_END:
            is_small = position == last or parts[position + 1] in _CHINESE_AT_END
        else:
            is_small = part in _CHINESE_ANYWHERE or part in SMALL_WORDS
        if not is_small:
            kept.append(part)
    return kept


def is_unspaced(units: Words) -> bool:
    """Whether most units are characters of scripts without spaces; two of them count as a word."""
    return 2 * sum(_IS_UNSPACED.match(unit) is not None for unit in units) > len(units)


def deciding(units: Words) -> Words:
    """The numbers, operators and negations among units, in their order."""
    return tuple(
        unit
        for unit in units
        if unit in OPERATORS or unit in DECIDING_WORDS or any(map(str.isdigit, unit))
    )


def have_same_names(text: str, other: str) -> bool:
    """Whether two texts with the same content also have the same names among their small words:
    "vitamin A" and "vitamin D" have not, nor "the US" and "us"."""
    names = _names(text) | _names(other)
    return not names or _with_names(text, names) == _with_names(other, names)


def _names(text: str) -> frozenset[str]:
    names = {match.casefold() for match in _LETTER.findall(text)}
    if text != text.upper():
        names |= {match.casefold() for match in _CAPITALS.findall(text)} & SMALL_WORDS
    return frozenset(names)


def _with_names(text: str, names: Collection[str]) -> list[str]:
    """The content of a text, with the small words that are names in it or in another."""
    words = normalise(text).split()
    return [word for word in words if word not in SMALL_WORDS or word in names]


class Clauses(NamedTuple):
    """A text's clauses one after the other, and where in units and in content each begins; the
    last entry of either is where the text ends."""

    texts: list[str]
    units: Words
    unit_bounds: list[int]
    content: Words
    content_bounds: list[int]


def clauses_of(text: str) -> Clauses:
    texts = [part for part in _CLAUSE_END.split(text) if part.strip()]
    units: list[str] = []
    content: list[str] = []
    unit_bounds, content_bounds = [0], [0]
    for part in texts:
        read = read_units(part)
        units += read.all
        content += read.content
        unit_bounds.append(len(units))
        content_bounds.append(len(content))
    return Clauses(texts, tuple(units), unit_bounds, tuple(content), content_bounds)
