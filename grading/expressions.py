r"""Which part of an answer is an expression, and how it is handed to what can work it out.

`3\sqrt{13}`, `2x+1` and a box with `9+1` are expressions. Plain numbers are none, and are never
read here: dates, ranges, mixed numbers and sums outside of formulas keep what `numbers` says.
"""

# ruff: noqa: RUF001 - signs that look alike are what is told apart here
from __future__ import annotations

import re

from grading.latex import with_whole_numbers

LONGEST = 1000  # characters of an expression; what is longer is no short answer
MOST_NESTED = 20  # brackets in brackets

_GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|kappa|lambda|mu|nu|xi|rho"
    "|sigma|tau|phi|varphi|chi|psi|omega|Delta|Omega|Phi|Psi|Gamma|Lambda|Sigma|Theta"
)
_FUNCTIONS = (
    "arcsin|arccos|arctan|arccot|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|lg|max|min|gcd"
)
_KNOWN = (
    rf"(?:{_GREEK}|{_FUNCTIONS}|pi|infty|[dtc]?frac|d?binom|sqrt|cdot|times|div|pm|mp|cup|cap"
    r"|left|right|[bB]ig+[lr]?|lfloor|rfloor|lceil|rceil|lvert|rvert|circ|displaystyle|over)"
)
_SPACE = (
    r"(?:\\[!,;:> ]|\\(?:q?quad|thinspace|enspace|space|displaystyle|textstyle)(?![A-Za-z])|~|\s)"
)
_ONE_UNIT = r"(?:\\(?:text|mathrm)\{[A-Za-z]+\}|[A-WΩµa-w]+)(?:\^\{?-?\d\}?)?"
_UNITS = rf"{_ONE_UNIT}(?:\s*(?:[·/*]|\\cdot)\s*{_ONE_UNIT})*"
_TOKEN = re.compile(
    rf"\\{_KNOWN}(?![A-Za-z])|\\[{{}}|]|{_SPACE}|\d+(?:\.\d+)?|\.\d+|[A-Za-z]|[-+*/^_!()\[\]{{}},;|]"
)
_RUN = re.compile(r"(?<!\\)(?<![\\A-Za-z])[A-Za-z]{2,}")
_PLAIN_NAMES = re.compile(rf"(?<![\\A-Za-z])((?:{_FUNCTIONS})(?=\s*[_(\d^])|pi|sqrt)(?![A-Za-z])")
_LONGEST_RUN = 3  # letters of variables beside each other in a formula
_WORDS = frozenset(
    (
        *("or", "and", "is", "to", "of", "yes", "no", "not", "the", "are", "if", "for", "by", "as"),
        *("at", "it", "we", "so"),
    )
)
_JOINED_DIGITS = re.compile(r"(?<![_\d])\d+\s+\.?\d|\d[eE][-+]?\d|\d\s*[x×]\s*\d")
# 1939-1945, 3 - 5, 24/7, 12/25/2026: what looks like a sum may be a range, a score or a date.
_RANGE = re.compile(r"[-+]?[\d.,]+(?:\s*-\s*[\d.,]+|\s*/\s*[\d.,]+)+")
# Without delimiters, letters and commands tell a formula from numbers with signs between them.
_MAKES_FORMULA = re.compile(
    r"\\[A-Za-z]|[a-z]\)*\s*[-+*/^]\s*\S|[-+*^(]\s*[a-z]"
    r"|[-+]\s*\d+[inxyz](?![A-Za-z])|[\^_]\{|^(?:[(\[]|\\?\{).*,.*[)\]}]$"
)
_ONLY_SIGNS = re.compile(r"\\(?:times|cdot|div|left|right|min|max|gcd)(?![A-Za-z])")
_UNFINISHED = re.compile(r"(?:[-+*/^_(\[{]|\\(?:times|cdot|div|left|pm))\s*$|^[*/^_)]")
_MEASURE = re.compile(
    rf"[-+]?[\d.,]+{_SPACE}+(?:\\[dt]?frac\{{{_UNITS}\}}\{{{_UNITS}\}}|{_UNITS})"
)  # 9.8 \frac{m}{s^2}, 12 N·m
_HAS_VALUE = re.compile(rf"\d|\\(?:pi|infty|sqrt|frac|cdot|{_FUNCTIONS})|[-+^]")
_FORMULAS = (
    re.compile(r"\$\$(.+?)\$\$", re.DOTALL),
    re.compile(r"\\\[(.+?)\\\]", re.DOTALL),
    re.compile(r"\\\((.+?)\\\)", re.DOTALL),
    re.compile(r"(?<![\\$])\$(?!\$)([^$\n]+?)(?<!\\)\$(?!\$)"),
)
_AROUND = " \t\n.,;:!*_`"
_AROUND_VALUE = " \t\n.,;:*_`"  # 5! is 120
_UNIT = re.compile(
    rf"{_SPACE}*(?:\\(?:text|mathrm|textrm|textbf|mbox|operatorname){{[^{{}}\\]*}}(?:\^{{?-?\d}}?)?"
    r"|(?<=[\s}\d)])(?:(?:square|cubic|sq\.?)\s+)?(?:[a-z]{4,}|cm|mm|km|kg|ft|in|mi)(?:\^{?\d}?)?)$"
)
_UNIT_BEHIND = re.compile(
    r"\s+(?:(?:square|cubic|sq)\.?\s+)?(?:units?|[cmk]?m|ft|in|feet|foot|inch(?:es)?|yards?|miles?"
    r"|(?:centi|milli|kilo)?met(?:er|re)s?|degrees?|radians?|seconds?|minutes?|hours?|dollars?)"
    r"(?:\^?[23²³])?$"
)
_NAME = re.compile(
    r"\s*(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?'?|[A-Za-z]\([a-z]\))\s*(?:=|∈|\\in(?![A-Za-z]))"
)
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:\^\s*(?:\\circ|\{\s*\\circ\s*\}|°)|°|\\degree)")
_ANGLE = re.compile(r"(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_EQUALS = re.compile(r"(?<![<>!:\\=])=(?!=)|\\equiv(?![A-Za-z])")
_ABOUT = re.compile(
    r"\\approx(?![A-Za-z])|\\simeq(?![A-Za-z])|≈|≃"
    r"|,?\s*\(?(?:\b(?:which is|or)\s+)?\b(?:about|approximately|roughly)\b"
)
_SIGNS = {
    **{"π": r"\pi ", "×": r"\times ", "·": r"\cdot ", "÷": r"/", "∞": r"\infty ", "±": r"\pm "},
    **{r"\lbrace": r"\{", r"\rbrace": r"\}"},
    **{"−": "-", "–": "-", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "∪": r"\cup "},
}
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]))")
_ROOT_OF = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_RAISED = re.compile(r"\^\s*(?:\(([^()]*)\)|(-\d+|\d{2,}))")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|boldsymbol|displaystyle)\{([^{}\\]*)\}")

# A number with its base, as LaTeX and programs write it.
_BASES = [
    *("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen"),
]
_BASED = re.compile(
    r"\{?(-?[0-9A-Za-z]{1,200}(?:\.[0-9A-Za-z]{1,200})?)\}?"
    rf"_[({{]{{0,2}}(\d{{1,2}}|{'|'.join(_BASES[2:])})[)}}]{{0,2}}",
    re.IGNORECASE,
)
_PREFIXED = re.compile(r"(-?)0([bBoOxX])([0-9A-Fa-f]{1,200})")
_BASE_TEN = re.compile(r"(?<=\d)_(?:\{ ?10 ?\}|10(?!\d))")
_SUBSCRIPT = re.compile(r"\d\}?_")
_AROUND_BASE = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|texttt|mathtt|tt)(?![A-Za-z])|\\[,!;: ]|[\s$~]"
)
_BRACED = re.compile(r"\{((?:[^{}]|\{[^{}]*\})*,(?:[^{}]|\{[^{}]*\})*)\}")

_NEXT_EQUATION = re.compile(r"[,;\n]|\\(?:implies|Rightarrow|iff|to|quad|qquad)(?![A-Za-z])|[⇒→]")
_UNNUMBERED = re.compile(r"\\(?:left|right|displaystyle|[,!;:])(?![A-Za-z])")
_BOUND = re.compile(r"\\(?:sum|prod|i*int|lim|max|min|binom|det)(?![A-Za-z])|[∑∫∏|]")
_WORDS_OF_LATEX = re.compile(rf"\\(?:{_FUNCTIONS}|[dtc]?frac|cdot|times|div|sqrt)(?![A-Za-z])")
_ARGUMENTS = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z]'{0,2}(?:_\{?\w+\}?)?\s*[(\[][^()\[\]]{0,40}[)\]]"
)
_CONSTANTS = re.compile(  # i^2 = -1, R^2 = 0.9; what stands in a subscript is part of its name
    r"(?<![A-Za-z\\])(?:[ie](?![A-Za-z])|R\s*\^\s*\{?2\}?)|_\{[^{}]*\}"
)
_TERM = re.compile(
    r"\d\s*[A-FNP-RT-Za-fi-kn-rt-z](?![A-Za-z0-9])|[A-Za-z]\s*\^\s*\{?\w|[A-Za-z]\s*[-+*/]\s*[\w(\\]"
    r"|[-+*/]\s*[A-Za-z](?![A-Za-z])|\{\s*[a-z]\s*\}\s*\{|\{\w+\}\s*\{\s*[a-z]\s*\}"
)


def in_other_base(text: str) -> str | None:
    """The digits and the base of a number in another base than ten: `101_2`, `ff_{16}`, `0xff`.

    It is no plain number, and the same as itself alone. None for any other text.
    """
    bare = _AROUND_BASE.sub("", text)
    if (prefixed := _PREFIXED.fullmatch(bare)) is not None:
        base, digits = {"b": 2, "o": 8, "x": 16}[prefixed[2].lower()], prefixed[1] + prefixed[3]
    elif (based := _BASED.fullmatch(bare)) is not None:
        digits = based[1]
        base = int(based[2]) if based[2].isdigit() else _BASES.index(based[2].lower())
    else:
        return None
    is_variable = len(digits) == 1 and digits.isalpha()
    values = [int(digit, 36) for digit in digits.lstrip("-").replace(".", "")]
    if is_variable or not 2 <= base <= 36 or base == 10 or max(values) >= base:
        return None
    sign = "-" if digits[0] == "-" else ""
    return f"{sign}{digits.lstrip('-').lstrip('0').upper() or '0'}_{base}"


def are_set_and_point(one: str, other: str) -> bool:
    r"""Whether of two expressions one is a set, `\{1, 2\}`, and one a point or an interval."""
    kinds = set()
    for latex in (one, other):
        bare = latex.removeprefix(r"\left").lstrip()
        is_joined = "," not in bare or r"\cup" in bare or r"\cap" in bare
        kinds.add(None if is_joined else bare[0] if bare[0] in "([" else bare[:2])
    return r"\{" in kinds and not kinds.isdisjoint(("(", "["))


def formula_alone(text: str) -> str | None:
    """What stands in a text that is one formula in its delimiters; None for any other."""
    bare = text.strip(_AROUND)
    for pattern in _FORMULAS if len(bare) <= LONGEST else ():
        if (match := pattern.fullmatch(bare)) is not None:
            return match[1]
    return None


def last_formula(text: str) -> re.Match[str] | None:
    """The formula that ends a text, but for marks and a unit; None where other words end it."""
    tail = text.rstrip(_AROUND)[-LONGEST:]
    bare = _UNIT_BEHIND.sub("", tail).rstrip(_AROUND)
    matches = (list(pattern.finditer(bare)) for pattern in _FORMULAS)
    ends = [found[-1] for found in matches if found and found[-1].end() == len(bare)]
    return ends[0] if ends else None


def first_formula(text: str) -> str | None:
    """The formula that a text begins with."""
    matches = (pattern.match(text) for pattern in _FORMULAS)
    return next((match[1] for match in matches if match is not None), None)


def exact_and_rounded(text: str) -> tuple[str, str]:
    r"""Of `\sqrt{2} \approx 1.41` both sides, else the text twice."""
    sides = _ABOUT.split(text)
    return (sides[0], sides[-1]) if len(sides) == 2 else (text, text)


def expression(text: str, *, is_formula: bool) -> str | None:
    """The LaTeX of a text that is an expression and no plain number; None for any other text.

    `is_formula` says that it stands in a box or in delimiters of mathematics. The caller has looked
    whether the text is a plain number already.
    """
    if len(text) > LONGEST:
        return None
    value = _value_side(text.strip(_AROUND_VALUE))
    if in_other_base(value) is not None:
        return value
    if _SUBSCRIPT.search(_BASE_TEN.sub(" ", value)) is not None:
        return None  # 121_b, 19_8, 101_2 + 1_2
    braced = _BRACED.fullmatch(value)  # a set, also without LaTeX's backslashes
    text = _in_latex(value if braced is None else rf"\{{{braced[1]}\}}")
    if _RANGE.fullmatch(text) or _JOINED_DIGITS.search(text):
        return None
    if not (_HAS_VALUE.search(text) or (is_formula and "/" in text)):
        return None
    if _UNFINISHED.search(text) or _MEASURE.fullmatch(value) or _is_deep(text):
        return None
    longest = _LONGEST_RUN if is_formula else 1
    runs = _RUN.findall(text)
    if any(len(run) > longest or run.lower() in _WORDS for run in runs):
        return None
    if not (is_formula or _is_surely_formula(value) or _is_surely_formula(text.replace("^{", "^"))):
        return None
    position = 0
    while position < len(text):
        if (match := _TOKEN.match(text, position)) is None:
            return None
        position = match.end()
    return text or None


def is_unsolved(text: str) -> bool:
    r"""Whether a text is an equation that no name is alone in: `2x = 5`, `x^2 = 25`.

    A name, a function of one and plain arithmetic have the value of the right side; so have sums
    and integrals, whose letters are their own.
    """
    if len(text) > LONGEST:
        return False
    last = _NEXT_EQUATION.split(_UNNUMBERED.sub(" ", text))[-1]
    left, *others = _EQUALS.split(last)
    if not others or _BOUND.search(left) is not None:
        return False
    left = _CONSTANTS.sub("1", left)
    left = _ARGUMENTS.sub("f", _WORDS_OF_LATEX.sub(" ", _WRAPPED.sub(r" \1 ", left))).strip(" $(")
    return re.search(r"[A-Za-z]{2}", left) is None and _TERM.search(left) is not None


def _is_deep(text: str) -> bool:
    depth, deepest = 0, 0
    for char in text:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(char, 0)
        deepest = max(deepest, depth)
    return deepest > MOST_NESTED


def _is_surely_formula(text: str) -> bool:
    return _MAKES_FORMULA.search(_ONLY_SIGNS.sub("", text)) is not None


def _value_side(text: str) -> str:
    """What an equation comes to in the end, without a unit behind it."""
    text = _EQUALS.split(_NAME.sub("", text, count=1))[-1].strip(_AROUND_VALUE)
    text = _DEGREES.sub(r"(\1\\pi/180)" if _ANGLE.search(text) else r"\1", text)
    text = re.sub(r"\\\$|^[$€£]|\\%$", "", text.strip()) if "%" not in text else text
    return _UNIT.sub("", text).strip(_AROUND_VALUE)


def _in_latex(text: str) -> str:
    """The text with the signs and the names of plain mathematics as LaTeX has them."""
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2] or m[3] or ''}}}", with_whole_numbers(text))
    for sign, command in _SIGNS.items():
        text = text.replace(sign, command)
    text = text.replace("**", "^").replace("*", r"\cdot ")
    text = re.sub(r"\\([dt])frac", r"\\frac", _WRAPPED.sub(r"\1", text))
    text = _PLAIN_NAMES.sub(r"\\\1 ", text)
    text = _ROOT_OF.sub(r"\\sqrt{\1}", text)
    text = _RAISED.sub(lambda m: f"^{{{m[1] or m[2]}}}", text)
    if not re.search(r"[(\[{]\s*[^()\[\]{}]*,", text):
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return re.sub(r"([,;])\s+", r"\1", text.strip())
