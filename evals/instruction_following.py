"""Prompts with instructions that a program can check: counts, forms, fixed words, JSON.

Every prompt is made here from a subject and the arguments of its instructions, so that text and
check cannot disagree; a sample scores 1 when all its instructions hold. It does not measure whether
the answer says anything true or useful about its subject: a nonsense answer of the right shape
passes. The counting rules are plain (see each check) and differ from IFEval's, so the scores cannot
be compared with published ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import (
    CORRECT,
    INCORRECT,
    Score,
    Scorer,
    Target,
    accuracy,
    scorer,
    stderr,
)
from inspect_ai.solver import TaskState, generate


class Kind(NamedTuple):
    """One kind of instruction: its sentence in the prompt, and its check."""

    sentence: str
    holds: Callable[..., bool]


# --- checks: the answer comes stripped and not empty ----------------------------------------------


def count_words(text: str) -> int:
    """Count what stands between spaces and holds a letter or a digit: "well-known" is one word."""
    return sum(any(c.isalnum() for c in piece) for piece in text.split())


def count_sentences(text: str) -> int:
    """Count the pieces ended by . ! or ? before a space or the end; "3.5" does not end one."""
    return sum(any(c.isalnum() for c in piece) for piece in re.split(r"[.!?]+(?=\s|$)", text))


def count_paragraphs(text: str) -> int:
    """Count the pieces between empty lines."""
    return len([piece for piece in re.split(r"\n\s*\n", text) if piece.strip()])


def count_bullets(text: str) -> int:
    """Count the lines that begin with "- "."""
    return sum(line.startswith("- ") for line in text.splitlines())


def count_keyword(text: str, word: str) -> int:
    """Count a whole word, upper case or not."""
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


def has_case(text: str, *, upper: bool) -> bool:
    """Tell whether every letter has the case; a text without letters has none."""
    return text.isupper() if upper else text.islower()


def is_json_object(text: str, keys: Sequence[str]) -> bool:
    """Tell whether the whole answer, apart from a code fence, is an object with just these keys."""
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n\s*```", text, re.DOTALL)
    try:
        value = json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and set(value) == set(keys)


KINDS: dict[str, Kind] = {
    "num_words": Kind(
        "Use exactly {count} words.",
        lambda answer, count: count_words(answer) == count,
    ),
    "min_words": Kind(
        "Use at least {count} words.",
        lambda answer, count: count_words(answer) >= count,
    ),
    "max_words": Kind(
        "Use at most {count} words.",
        lambda answer, count: count_words(answer) <= count,
    ),
    "num_sentences": Kind(
        "Write exactly {count} sentences.",
        lambda answer, count: count_sentences(answer) == count,
    ),
    "num_paragraphs": Kind(
        "Write exactly {count} paragraphs with an empty line between them.",
        lambda answer, count: count_paragraphs(answer) == count,
    ),
    "num_bullets": Kind(
        'Give exactly {count} bullet points, each on a line that begins with "- ".',
        lambda answer, count: count_bullets(answer) == count,
    ),
    "lower_case": Kind(
        "Write in lower case only, without any capital letter.",
        lambda answer: has_case(answer, upper=False),
    ),
    "upper_case": Kind(
        "WRITE IN CAPITAL LETTERS ONLY.",
        lambda answer: has_case(answer, upper=True),
    ),
    "no_commas": Kind(
        "Do not use any comma.",
        lambda answer: "," not in answer,
    ),
    "starts_with": Kind(
        'Begin your answer with exactly this text: "{text}"',
        lambda answer, text: answer.startswith(text),
    ),
    "ends_with": Kind(
        'End your answer with exactly this text and nothing after it: "{text}"',
        lambda answer, text: answer.endswith(text),
    ),
    "keyword_count": Kind(
        'Use the word "{word}" exactly {count} times.',
        lambda answer, word, count: count_keyword(answer, word) == count,
    ),
    "without_word": Kind(
        'Do not use the word "{word}".',
        lambda answer, word: count_keyword(answer, word) == 0,
    ),
    "json_keys": Kind(
        "Answer with nothing but one JSON object that has exactly these keys: {keys}.",
        lambda answer, keys: is_json_object(answer, keys),
    ),
    "in_quotes": Kind(
        "Put your whole answer between double quotation marks.",
        lambda answer: len(answer) > 2 and answer[0] == answer[-1] == '"',
    ),
    "title": Kind(
        "Give the answer a title in double angle brackets, such as <<title>>, on a line of its own "
        "at the top.",
        lambda answer: re.fullmatch(r"<<[^<>\n]+>>", answer.splitlines()[0].strip()) is not None,
    ),
    "one_of": Kind(
        "Answer with one of these words and nothing else: {options}.",
        lambda answer, options: answer.removesuffix(".").casefold() in map(str.casefold, options),
    ),
}


def check(answer: str, checks: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Tell for each instruction whether the answer follows it; an empty answer follows none."""
    text = answer.strip()
    if not text:
        return [False] * len(checks)
    return [
        KINDS[one["kind"]].holds(text, **{key: one[key] for key in one if key != "kind"})
        for one in checks
    ]


# --- prompts --------------------------------------------------------------------------------------

SUBJECTS = (
    "Describe the sea in winter.",
    "Explain why leaves change their color.",
    "Describe how bread is made.",
    "Explain what a library is for.",
    "Describe a busy railway station.",
    "Explain how a bicycle keeps its balance.",
    "Describe your ideal breakfast.",
    "Explain why people keep dogs.",
    "Describe a thunderstorm.",
    "Explain what a bank does.",
    "Describe the work of a gardener.",
    "Explain how to boil an egg.",
    "Describe an old market town.",
    "Explain why sleep matters.",
)


def _counts(kind: str, *counts: int) -> list[list[dict[str, Any]]]:
    return [[{"kind": kind, "count": count}] for count in counts]


def _long(kind: str, *num_words: int) -> list[list[dict[str, Any]]]:
    # Alone, these would be followed by an answer of one word.
    return [[{"kind": kind}, {"kind": "min_words", "count": count}] for count in num_words]


# For each topic, the instructions of its prompts.
PROMPTS: dict[str, list[list[dict[str, Any]]]] = {
    "num_words": _counts("num_words", 5, 8, 10, 12, 15, 20, 25),
    "min_words": _counts("min_words", 40, 60, 80, 100, 120, 150, 200),
    "max_words": [
        [{"kind": "max_words", "count": count}, {"kind": "min_words", "count": count // 2}]
        for count in (6, 8, 10, 15, 20, 30, 40)
    ],
    "num_sentences": _counts("num_sentences", 1, 2, 3, 4, 5, 6, 7),
    "num_paragraphs": _counts("num_paragraphs", 2, 3, 4, 5, 2, 3, 4),
    "num_bullets": _counts("num_bullets", 2, 3, 4, 5, 6, 7, 8),
    "lower_case": _long("lower_case", 5, 10, 15, 20, 30, 40, 50),
    "upper_case": _long("upper_case", 5, 10, 15, 20, 30, 40, 50),
    "no_commas": _long("no_commas", 15, 20, 25, 30, 40, 50, 60),
    "starts_with": [
        [{"kind": "starts_with", "text": text}, {"kind": "min_words", "count": 12}]
        for text in (
            "To begin with",
            "In short:",
            "My answer is this.",
            "Once upon a time",
            "First of all",
            "Dear reader",
            "Note:",
        )
    ],
    "ends_with": [
        [{"kind": "ends_with", "text": text}, {"kind": "min_words", "count": 12}]
        for text in (
            "That is all.",
            "Is there anything else?",
            "End of answer.",
            "Thank you for reading!",
            "And so it goes.",
            "What do you think?",
            "Goodbye.",
        )
    ],
    "keyword_count": [
        [{"kind": "keyword_count", "word": word, "count": count}]
        for word, count in (
            ("water", 2),
            ("green", 3),
            ("flour", 2),
            ("people", 4),
            ("train", 3),
            ("wheel", 2),
            ("morning", 5),
        )
    ],
    "without_word": [
        [{"kind": "without_word", "word": word}, {"kind": "min_words", "count": 25}]
        for word in ("the", "very", "and", "people", "is", "can", "it")
    ],
    "json_keys": [
        [{"kind": "json_keys", "keys": keys}]
        for keys in (
            ["summary"],
            ["title", "text"],
            ["steps", "time"],
            ["question", "answer"],
            ["place", "people", "mood"],
            ["first", "second", "third"],
            ["name", "price", "reason", "rating"],
        )
    ],
    "in_quotes": _long("in_quotes", 5, 10, 15, 20, 25, 30, 40),
    "title": _long("title", 10, 15, 20, 25, 30, 40, 50),
    "several": [
        [{"kind": "num_sentences", "count": 3}, {"kind": "no_commas"}],
        [{"kind": "lower_case"}, {"kind": "num_words", "count": 10}],
        [{"kind": "num_bullets", "count": 3}, {"kind": "max_words", "count": 30}],
        [
            {"kind": "starts_with", "text": "First of all"},
            {"kind": "ends_with", "text": "That is all."},
        ],
        [{"kind": "num_paragraphs", "count": 2}, {"kind": "min_words", "count": 40}],
        [{"kind": "upper_case"}, {"kind": "num_sentences", "count": 2}],
        [{"kind": "title"}, {"kind": "num_bullets", "count": 4}],
        [{"kind": "in_quotes"}, {"kind": "num_words", "count": 12}],
        [{"kind": "json_keys", "keys": ["title", "text"]}, {"kind": "max_words", "count": 40}],
        [
            {"kind": "keyword_count", "word": "because", "count": 2},
            {"kind": "num_sentences", "count": 3},
        ],
        [{"kind": "no_commas"}, {"kind": "lower_case"}, {"kind": "min_words", "count": 15}],
        [
            {"kind": "ends_with", "text": "What do you think?"},
            {"kind": "max_words", "count": 25},
            {"kind": "min_words", "count": 12},
        ],
        [{"kind": "without_word", "word": "and"}, {"kind": "num_sentences", "count": 4}],
        [{"kind": "title"}, {"kind": "no_commas"}, {"kind": "min_words", "count": 30}],
    ],
}
# Questions of their own, since these answers are one word.
CHOICES: tuple[tuple[str, list[str]], ...] = (
    ("Is the sun a star?", ["yes", "no"]),
    ("Do fish live in trees?", ["yes", "no"]),
    ("Is coffee a drink?", ["TRUE", "FALSE"]),
    ("Which of these is a fruit?", ["apple", "hammer", "window"]),
    ("How warm is ice?", ["hot", "cold"]),
    ("Is it right to say that tea is better than coffee?", ["agree", "disagree", "undecided"]),
    ("How many legs does a spider have?", ["six", "eight", "ten"]),
)


def make_samples() -> list[Sample]:
    """Make all prompts; ids are the topic and the place in it."""
    samples: list[Sample] = []
    for topic, rows in PROMPTS.items():
        for index, checks in enumerate(rows):
            # Another start for each topic, so that subjects and kinds mix.
            subject = SUBJECTS[(len(samples) + index) % len(SUBJECTS)]
            samples.append(_sample(topic, index, subject, checks))
    for index, (question, options) in enumerate(CHOICES):
        samples.append(_sample("one_of", index, question, [{"kind": "one_of", "options": options}]))
    return samples


def _sample(topic: str, index: int, subject: str, checks: list[dict[str, Any]]) -> Sample:
    return Sample(
        id=f"{topic}-{index + 1}",
        input=" ".join([subject, *(sentence_of(one) for one in checks)]),
        metadata={"topic": topic, "checks": checks},
    )


def sentence_of(one: Mapping[str, Any]) -> str:
    """Put an instruction into words."""
    arguments = {
        key: ", ".join(value) if isinstance(value, list) else value for key, value in one.items()
    }
    return KINDS[one["kind"]].sentence.format(**arguments).replace(" 1 sentences", " one sentence")


# --- task -----------------------------------------------------------------------------------------


@task
def instruction_following() -> Task:
    """Ask all prompts; a sample is right when all its instructions hold."""
    return Task(
        dataset=MemoryDataset(make_samples(), name="instruction_following"),
        solver=generate(),
        scorer=all_hold(),
        version=1,
    )


@scorer(metrics=[accuracy(), stderr()])
def all_hold() -> Scorer:
    """Check every instruction of a prompt; name those that do not hold."""

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        checks = state.metadata["checks"]
        broken = [
            one["kind"]
            for one, holds in zip(checks, check(answer, checks), strict=True)
            if not holds
        ]
        return Score(
            value=INCORRECT if broken else CORRECT,
            answer=answer,
            explanation=f"does not hold: {', '.join(broken)}" if broken else "all hold",
        )

    return score
