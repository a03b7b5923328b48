r"""LaTeX as a reader sees it: `\frac{1}{2}` is 1/2, `\text{Paris}` is Paris.

One pass over the text with a stack of what each open brace closes with, so that a text of any
depth takes as long as its length says.
"""

# ruff: noqa: RUF001 - signs that look alike are what is told apart here
from __future__ import annotations

import re
import unicodedata

# Where a value is marked as the answer; private characters, which no text brings along.
BOX, END_OF_BOX = "\ue000", "\ue001"

_SPACES = dict.fromkeys(("quad", "qquad", "space", "thinspace", "enspace", "hspace"), " ")
_NOTHING = dict.fromkeys(
    (
        *("left", "right", "middle", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr"),
        *("displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "rm", "bf", "it", "sf"),
        *("text", "textbf", "textit", "textrm", "textsf", "texttt", "textnormal", "textup"),
        *("mathrm", "mathbf", "mathit", "mathsf", "mathtt", "mathnormal", "operatorname"),
        *("mbox", "hbox", "emph", "underline", "boldsymbol", "bm", "ensuremath", "tt", "bfseries"),
    ),
    "",
)
_GREEK = {
    name: unicodedata.lookup(f"GREEK SMALL LETTER {name}")
    for name in (
        *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"),
        *("mu", "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega"),
    )
}
_SIGNS = {
    **{"times": "×", "cdot": "×", "ast": "×", "div": "÷", "pm": "±", "mp": "∓", "infty": "∞"},
    **{"approx": "≈", "sim": "~", "simeq": "≈", "ne": "≠", "neq": "≠", "equiv": "≡"},
    **{"le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "lt": "<", "gt": ">", "degree": "°"},
    **{"ldots": "...", "dots": "...", "cdots": "...", "to": "→", "rightarrow": "→"},
    **{"Rightarrow": "→", "implies": "→", "pounds": "£", "euro": "€", "yen": "¥"},
    **{"textdollar": "$", "textdegree": "°", "celsius": "°C", "percent": "%", "circ": "°"},
    **{"lbrace": "{", "rbrace": "}", "langle": "<", "rangle": ">", "vert": "|", "mid": "|"},
}
_WORDS = {**_SPACES, **_NOTHING, **_GREEK, **_SIGNS}
_FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac", "nicefrac", "sfrac")
_BOXES = ("boxed", "fbox", "framebox")
_TOKEN = re.compile(r"\\([A-Za-z]+)\*?([ \t]*\{)?|\\(.)|([{}])|([_^])[ \t]*\{", re.DOTALL)
_SHORT_FRACTION = re.compile(r"\\([cdt]?frac)[ \t]*(\d|\{\d*\})[ \t]*(\d|\{\d*\})")
_OVER = re.compile(r"\{([^{}\\]*)\\over(?![A-Za-z])([^{}]*)\}")
_ARGUMENT = re.compile(r"[ \t]*\{")
# `$...$` is mathematics where no space stands inside of it and no digit follows: not "$5 and $6".
_MATHS = re.compile(r"(?<![\\$])\$(?=[^\s$])([^$\n]*?)(?<=[^\s$\\])\$(?![\d$])")
_DEGREES = re.compile(r"\^[ \t]*(?:\{[ \t]*\\circ[ \t]*\}|\\circ(?![A-Za-z])|°|\{°\})")
_NUMBER = r"([-+]?[\d.,]+)"
_TIDY = (
    (re.compile(rf"\( ?{_NUMBER} ?\)/\( ?{_NUMBER} ?\)"), r"\1/\2"),
    (re.compile(r"\^\(([-+]?\d+)\)"), r"^\1"),
    (re.compile(r"_\((\w+)\)"), r"_\1"),
    # a subscript of a letter is written beside it, as CO₂ is
    (re.compile(r"(?<=[A-Za-z])_(\d+)"), r"\1"),
)


def without_latex(text: str) -> str:
    """The text with LaTeX's commands read, and `BOX` and `END_OF_BOX` around a boxed value."""
    text = _MATHS.sub(r"\1", text.replace("$$", " "))
    if "\\" in text or "{" in text:
        text = re.sub(r"\{([,.])\}", r"\1", _DEGREES.sub("°", text))
        text = _SHORT_FRACTION.sub(_with_braces, _OVER.sub(r"\\frac{\1}{\2}", text))
        text = _read(text)
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    return text


def _with_braces(match: re.Match[str]) -> str:
    above, below = match[2].strip("{}"), match[3].strip("{}")
    return f"\\{match[1]}{{{above}}}{{{below}}}"


_ABOVE = "above the line of a fraction"


def _read(text: str) -> str:
    out: list[str] = []
    closings: list[str] = []  # what each open brace closes with
    position = 0
    while (match := _TOKEN.search(text, position)) is not None:
        out.append(text[position : match.start()])
        position = match.end()
        name, brace, char, bare, script = match.groups()
        if name is not None:
            opening, closing = _command(name, brace is not None)
            is_after_digit = out[-1][-1:].isdigit() and opening == "("
            out.append(f" {opening}" if is_after_digit else opening)
            if brace is not None:
                closings.append(closing)
        elif char is not None:
            out.append(_escaped(char))
        elif script is not None:
            out.append(f"{script}(")
            closings.append(")")
        elif bare == "{":
            out.append("{")
            closings.append("}")
        else:
            closing = closings.pop() if closings else "}"
            if closing == _ABOVE:
                closing = ")/"
                if (below := _ARGUMENT.match(text, position)) is not None:
                    position, closing = below.end(), ")/("
                    closings.append(")")
            out.append(closing)
    out.append(text[position:])
    return "".join(out)


def _command(name: str, has_argument: bool) -> tuple[str, str]:
    """What a command and its brace open with, and what the brace closes with."""
    if name in _FRACTIONS and has_argument:
        return "(", _ABOVE
    if name in _BOXES:
        return (BOX, END_OF_BOX) if has_argument else (" ", "")
    if name == "sqrt":
        return ("√(", ")") if has_argument else ("√", "")
    if name in _WORDS:
        return _WORDS[name], ""
    return (f"\\{name}(", ")") if has_argument else (f"\\{name}", "")


def _escaped(char: str) -> str:
    """A backslash before a sign: a space of LaTeX's, the edge of a formula, or the sign itself."""
    if char in "!":
        return ""
    if char == "\\":
        return "\n"
    return " " if char in ",;:> ()[]\n" else char
