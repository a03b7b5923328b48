"""What a hypothesis in plain words claims, read with a small vocabulary or not at all.

A sentence is read only if every word of it is known and all of them together have one of a few
forms: `higher V improve M`, `M falls as V grows`, `V has no effect on M`, each perhaps with
diminishing returns behind. Everything else (negations, conditions, numbers, alternatives, other
measures than the score, and what says more than is tested: that gains end, that one value is best,
that each task gains, by how much or how steadily) is left to `study.expects`, since a guess would
be tested as if it had been meant. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from errors import one_line

Claim = tuple[str, str]  # variable, what is said of it


class Reading(NamedTuple):
    """The claims that were read; none where `why_not` says what kept the words from being read."""

    claims: list[Claim]
    why_not: str | None


# What settings are called, by their last part; each also goes by its own name.
ALIASES = {
    "lora_rank": "lora ranks?|adapter ranks?|ranks?|adapter sizes?|(?:trainable|lora) parameters",
    "learning_rate": "learning rates?|lrs?|step sizes?",
    "num_epochs": "(?:training )?epochs?|passes",
    "epochs": "(?:training )?epochs?|passes",
    "batch_size": "batch(?: sizes?|es)",
    "weight_decay": "weight decays?",
    "steps_per_round": "(?:training )?steps",
    "max_steps": "(?:training )?steps",
    "train_file": "(?:training )?(?:data(?: ?sets?)?|rows|examples)",
    "dataset": "(?:training )?(?:data(?: ?sets?)?|rows|examples)",
    "base_model": "(?:base )?models? sizes?|base models?",
    "seed": "seeds?",
    "warmup_steps": "warm-?ups?(?: steps)?",
    "max_length": "sequence lengths?|context lengths?",
    "temperature": "temperatures?",
    "dropout": "dropouts?",
    "lora_alpha": "(?:lora )?alphas?",
}
# Phrases by what they stand for. The first kind that fits is taken, so phrases stand before words.
_GAINS = "(?:returns?|gains?|improvements?|benefits?)"
# Not "all" and "both": that each task gains is more than that their mean does.
_PLACE = "(?:the|our|these|this|downstream)"
VOCABULARY: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "diminish",
        (
            "(?:with |at |shows? |gives? |has |have )?(?:only )?"
            f"(?:diminishing|decreasing|shrinking|declining) (?:marginal )?{_GAINS}",
            "(?:by )?(?:less and less|smaller and smaller(?: gains?| steps)?)",
            f"(?:the )?{_GAINS} (?:will )?(?:diminish|shrink)",
            "(?:eventually )?tapers? off",
        ),
    ),
    (
        "same",
        (
            "(?:has |have |had |makes? )?no (?:(?:significant|measurable|real|clear) )?"
            "(?:effects?|differences?|impacts?|influence)(?: (?:on|to|in|for|between))?",
            "(?:does|do|will|should|would) not matter(?: for)?",
            "(?:does|do|will|should|would) not (?:affect|change|influence|impact|depend on)",
            "(?:is|are) (?:independent of|irrelevant(?: (?:for|to))?|equivalent|equally good)",
            "(?:performs?|scores?|works?) (?:the same|equally(?: well)?|alike)",
        ),
    ),
    (
        "differs",
        (
            "matters?|affects?|influences?|impacts?|depends? on|varies with|makes? a difference",
            "(?:has|have) an (?:effect|impact|influence)(?: (?:on|in))?",
            "differs? (?:with|between|across)",
        ),
    ),
    ("as", ("as|when", "with(?= (?:increasing|rising|growing))")),
    ("with", ("with|at(?= (?:high|large|big))",)),
    (
        "plus",
        (
            "higher|larger|bigger|greater|more|high|large|additional|longer|(?:an )?increases? in",
            "increased|increasing|raising|raised|rising|growing",
        ),
    ),
    (
        "minus",
        (
            "lower|smaller|fewer|less|low|small|shorter|(?:a )?(?:decrease|reduction) in",
            "reduced|reducing|decreased|decreasing|lowering",
        ),
    ),
    ("up", ("increases?|rises?|grows?|goes up|go up|raises?",)),
    ("down", ("decreases?|falls?|drops?|declines?|reduces?|lowers?|goes down|go down",)),
    (
        "good",
        (
            "improves?|improved|improving|improvements? in|better|helps?|boosts?|benefits?",
            "outperforms?|superior",
        ),
    ),
    ("bad", ("worse|worsens?|hurts?|harms?|degrades?|inferior",)),
    ("than", ("than",)),
    ("join", ("but|and|though|although|yet|then|while",)),
    (
        "measure",
        (
            "(?:(?:task|downstream|model|evaluation|eval) )*"
            "(?:performance|scores?|accurac(?:y|ies)|results?(?! in\\b)|quality|outcomes?)",
        ),
    ),
    (
        "filler",
        (
            f"(?:on|in|for|across|over) (?:{_PLACE} )*(?:tasks?|questions|evaluations?|models?)",
            "will|would|should|may|might|can|could|likely|probably|eventually|also|further",
            "we|i|expect|think|believe|predict|hypothesi[sz]e|that|hypothesis|it|they",
            "the|a|an|of|to|its|their|this|these|our|all|values?|ones?|settings?|choice",
            "leads? to|results? in|yields?|gives?|produces?|achieves?|gets?|shows?|performs?",
            "have|has|is|are|be|does|do|on|in|using|lora",
            "significantly|generally|overall",
        ),
    ),
)
_SIGNS = {",": "join", ";": "join", ":": "filler", ".": "end", "!": "end"}
_NEGATION = (
    r"\b(?:not|no|never|none|neither|nor|without|hardly|barely|unlikely|fails?|cannot)\b|n't\b"
)
# Forms of a whole sentence: the words' kinds, one letter each, with D cut off the end.
_LETTERS = {
    "variable": "V", "plus": "+", "minus": "-", "up": "u", "down": "d", "good": "g", "bad": "b",
    "measure": "M", "same": "S", "differs": "F", "as": "A", "with": "W", "than": "T",
    "join": ",", "diminish": "D", "end": ".",
}  # fmt: skip
_FORMS = (
    # higher V improves M; higher V gives higher M; the higher V, the better; higher is better
    (r"(?P<v>[+-])V?,?(?P<s>[gbud])M?(?:T(?P<t>[+-])V?)?", "trend"),
    (r"(?P<v>[+-])V?,?(?P<s>[+-])M", "trend"),
    # M improves with V; M falls as V grows; as V grows, M falls
    (r"M(?P<s>[gbud])W(?P<v>[+-]?)V", "trend"),
    (r"M(?P<s>[gbud])AV(?P<v>[ud])", "trend"),
    (r"M(?P<s>[gbud])A(?P<v>[+-])V", "trend"),
    (r"AV(?P<v>[ud]),?M(?P<s>[gbud])", "trend"),
    (r"M(?P<s>[+-])W(?P<v>[+-])V", "trend"),
    (r"[+-]?VSM?|MSV|SVM?", "same"),
    (r"[+-]?VFM?|MFV", "differs"),
    # diminishing alone: V shows diminishing returns; diminishing returns with higher V
    (r"[+-]?VD|DW?\+?V|DAVu|MDW\+?V|MDAVu|MDA\+V", "diminishing"),
)
_PATTERNS = [
    (kind, re.compile(rf"(?:{'|'.join(phrases)})(?![\w'-])")) for kind, phrases in VOCABULARY
]
_UP = {"+": 1, "u": 1, "g": 1, "": 1, "-": -1, "d": -1, "b": -1}


def read_hypothesis(text: str, variables: Sequence[str], tasks: Collection[str] = ()) -> Reading:
    """Read a hypothesis on a study's variables, as the module says."""
    words = text.lower().replace("\u2019", "'").replace("\u2013", "-").replace("\u2014", ", ")
    words = re.sub(r"n't\b", " not", words.replace("can't", "can not").replace("won't", "will not"))
    words = " ".join(words.split())
    named = [name for name in variables if _names(name).search(words)]
    others = [
        match.group()
        for one in ALIASES
        if one not in map(_last, variables) and not any(_is_alias(one, name) for name in named)
        if (match := _names(one).search(words))
    ]
    told = [task for task in tasks if re.search(rf"\b{re.escape(task.lower())}\b", words)]
    if len(named) > 1:
        return Reading([], f"it names several variables ({', '.join(named)})")
    if others:
        return Reading([], f"it speaks of '{others[0]}', which the study does not vary")
    if not named and len(variables) != 1:
        return Reading([], "it names none of the study's variables by a name that is known")
    if told and len(tasks) > 1:
        return Reading([], f"it speaks of one task ({told[0]}), and claims are of the whole score")
    variable = named[0] if named else variables[0]
    kinds = _kinds(words, _names(variable))
    if isinstance(kinds, str):
        return Reading([], kinds)
    claims = _claims(kinds)
    if claims is None:
        return Reading([], "its words are known, but not what they say together")
    return Reading([(variable, claim) for claim in claims], None)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_alias(one: str, other: str) -> bool:
    """Whether two settings go by one word, such as steps."""
    return ALIASES[one] == ALIASES.get(_last(other))


def _names(variable: str) -> re.Pattern[str]:
    """What a variable is called: its name, its words, and what such settings are called."""
    last = _last(variable).lower()
    spelt = {re.escape(variable.lower()), re.escape(last), re.escape(last.replace("_", " ")) + "s?"}
    known = [ALIASES[last]] if last in ALIASES else []
    names = "|".join([*sorted(spelt, key=len, reverse=True), *known])
    return re.compile(rf"(?<![\w-])(?:{names})(?![\w-])")


def _kinds(words: str, names: re.Pattern[str]) -> str | list[str]:
    """The kinds of the words in order; a text says which word is not known."""
    kinds, at = [], 0
    while at < len(words):
        match: re.Match[str] | None = None
        if words[at] == " " or words[at] in _SIGNS:
            kinds.append(_SIGNS.get(words[at], "filler"))
            at += 1
            continue
        for kind, pattern in (("variable", names), *_PATTERNS):
            if match := pattern.match(words, at):
                kinds.append(kind)
                at = match.end()
                break
        if match is None:
            shown = one_line(re.findall(r"[^\s,;:.!]+|.", words[at:])[0], 30)
            if re.match(_NEGATION, words[at:]):
                return f"it says '{shown}', and what is denied is not clear enough to test"
            return f"'{shown}' is no word that is known here"
    return kinds


def _claims(kinds: Sequence[str]) -> list[str] | None:
    """What a sentence of these kinds of words claims; None where it has no form that is known."""
    letters = "".join(_LETTERS.get(kind, "") for kind in kinds).rstrip(".,").lstrip(",")
    is_diminishing = False
    # At higher values, behind it, says where returns diminish anyway.
    if (found := re.fullmatch(r"(.*[^,.WD])[,.]*W?D(?:W\+V)?", letters)) and not _form(letters):
        letters, is_diminishing = found.group(1), True
    form = _form(letters)
    if form is None:
        return None
    claim, match = form
    if claim != "trend":
        return None if is_diminishing else [claim]
    parts = match.groupdict()
    if parts.get("t") and _UP[parts["t"]] == _UP[parts["v"]]:
        return None  # higher is better than higher
    rises = _UP[parts["v"]] * _UP[parts["s"]] > 0
    if is_diminishing:
        # Only of what rises are returns known to diminish: of more, not of less.
        return ["rises", "diminishing"] if rises and _UP[parts["v"]] > 0 else None
    return ["rises" if rises else "falls"]


def _form(letters: str) -> tuple[str, re.Match[str]] | None:
    for pattern, claim in _FORMS:
        if match := re.fullmatch(pattern, letters):
            return claim, match
    return None
