"""Evaluation questions in training rows: found before the first step, and again in each selection.

A row is contaminated when a user turn asks a question in the same words (small words aside), as the
whole turn or as a clause of it; when it holds one of eight words or more word for word; and when it
has four fifths of the words and all the numbers of a question of twenty words or more, and the
nearest other question is more than twice as far from that one. What is only similar is listed.
Answers are never looked at, so that what is dropped does not depend on whether a row is right. In
scripts without spaces characters are compared instead of words, and every length is doubled.
Pure: texts in, findings out.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from rows.units import (
    Clauses,
    clauses_of,
    content_of,
    deciding,
    have_same_names,
    is_unspaced,
    read_units,
    units_of,
)
from rows.words import OPERATORS, Words, cut

# Lengths in words; of questions in scripts without spaces the same number twice, in characters.
MIN_CONTENT = 2  # of a whole turn that is the same but for small words,
MIN_CLAUSE_CONTENT = 3  # and of a clause
MIN_HELD = 4  # shorter questions only count when they are the whole turn
MIN_HELD_CHARACTERS = 6  # instead of eight: "how many people live in France" has seven in Chinese
MIN_HELD_ANYWHERE = 8  # shorter ones only from and to the end of a clause
MIN_LONG = 20  # shorter near copies are as often another question as the same one
RUN = 8  # words in a row that count as a long question's own
LISTED_RUN = 13  # words in a row that two texts do not share by chance (Brown et al. 2020, app. C)

MAX_CHANGED_SHARE = 0.2  # of the words of the longer text, in a near copy
MAX_OF_NEAREST = 0.5  # of the way to the nearest other question; a near copy is nearer than that
MIN_PATTERN = 5  # questions; a run that so many share is their pattern, and no sign of any

NEAR_RULES = ("nearly asks", "holds nearly all of")  # what reasons of near copies begin with
MAX_CODE = 0x10FFFF  # of a character; words beyond share one


@dataclass(frozen=True)
class EvalText:
    """A question that must not be trained on.

    `others` are further texts of it (a conversation's turns) that rows are listed for sharing a
    long run with. Questions of one `cluster` are variants of each other.
    """

    task: str
    question: str
    others: tuple[str, ...] = ()
    cluster: str | None = None
    only_same: bool = False  # no rule but the same question: rows of a split are like one another


class Hit(NamedTuple):
    """What was found in a row: the rule, the row's text and the evaluation's."""

    kind: Literal["contaminated", "similar"]
    reason: str
    text: str
    other: str


class _Question(NamedTuple):
    text: EvalText
    units: Words
    content: Words
    scale: int  # 2 where characters are compared, else 1
    is_long: bool


class _Found(NamedTuple):
    """A rule that a turn was found by, and the question; `is_copy` where that one is asked."""

    rule: str
    question: _Question
    is_copy: bool = True


# --- the questions, ready to be looked for --------------------------------------------------------


class EvalTexts:
    """The questions of all evaluation tasks, and the held-out conversations by their ids.

    With `keeps_near` a near copy is only similar; the same question is contamination as ever.
    """

    def __init__(
        self, texts: Iterable[EvalText], ids: Collection[str] = (), *, keeps_near: bool = False
    ) -> None:
        self._ids = frozenset(ids)
        self._keeps_near = keeps_near
        questions = [_question(text) for text in texts]
        compared = [one for one in questions if not one.text.only_same]
        self._whole: dict[Words, _Question] = {}
        for question in (*compared, *questions):
            if question.units:  # a conversation of several turns has no one question
                self._whole.setdefault(question.units, question)
        self._same: dict[Words, list[_Question]] = defaultdict(list)
        for question in compared:
            if len(question.content) >= MIN_CONTENT * question.scale:
                self._same[question.content].append(question)
        self._rarest = _rarest(self._same)  # nothing has a question's content without one of them
        held = [
            one
            for one in compared
            if len(one.units) >= (MIN_HELD if one.scale == 1 else MIN_HELD_CHARACTERS)
        ]
        self._held_lengths = _lengths((one.units for one in held), MIN_HELD)
        in_clause = (one for one in held if len(one.content) >= MIN_CLAUSE_CONTENT * one.scale)
        self._clause_lengths = _lengths((one.content for one in in_clause), MIN_CLAUSE_CONTENT)
        self._clause_starts = frozenset(self._clause_lengths)
        self._runs = _Runs(compared)
        self._starts = self._runs.starts | frozenset(self._held_lengths)
        self._near = _Near(compared)

    def find_in(self, example_id: str, messages: Sequence[tuple[str, str]]) -> Hit | None:
        """What is wrong with a conversation of (role, content), or else the question that it is
        similar to, or None."""
        if example_id in self._ids:
            reason = "the same conversation stands in a held-out file"
            return Hit("contaminated", reason, cut(messages[-1][1]), cut(messages[-1][1]))
        similar: Hit | None = None
        for role, content in messages:
            units = units_of(content)
            if role == "user":
                found = self._find_in_turn(content, units)
            else:
                found = self._shared(units, is_user=False) if self._has_start(units) else None
            if found is None:
                continue
            if found.is_copy:
                return _hit("contaminated", content, found)
            similar = similar or _hit("similar", content, found)
        return similar

    def _find_in_turn(self, text: str, units: Words) -> _Found | None:
        found = self._whole.get(units)
        if found is not None:
            return _Found("asks", found)
        has_start = self._has_start(units)
        has_clause = False
        if not self._rarest.isdisjoint(units):
            content = content_of(text, units)
            for question in self._same.get(content, ()):
                if have_same_names(text, question.text.question):
                    return _Found("asks, small words aside,", question)
            starts = zip(content, content[1:], content[2:], strict=False)
            has_clause = not self._clause_starts.isdisjoint(starts)
        if has_start or has_clause:
            held = self._held(text, units)
            if held is not None:
                return held
        shared = self._shared(units, is_user=True) if has_start else None
        near = None if shared is not None and shared.is_copy else self._nearly_asked(units)
        return near if near is not None and (near.is_copy or shared is None) else shared

    def _has_start(self, units: Words) -> bool:
        """Whether a turn may hold anything: the quick way out for almost every one."""
        starts = zip(units, units[1:], units[2:], units[3:], strict=False)
        return not self._starts.isdisjoint(starts)

    def _held(self, text: str, units: Words) -> _Found | None:
        """The question that a turn holds word for word, or asks in one of its clauses."""
        for start in range(len(units) - MIN_HELD + 1):
            for length in self._held_lengths.get(units[start : start + MIN_HELD], ()):
                found = self._word_for_word(units, start, length)
                if found is not None and length >= MIN_HELD_ANYWHERE * found.scale:
                    return _Found("holds", found)
        clauses = clauses_of(text)
        units, bounds = clauses.units, dict.fromkeys(clauses.unit_bounds)
        for start in bounds:
            for length in self._held_lengths.get(units[start : start + MIN_HELD], ()):
                found = self._word_for_word(units, start, length)
                if found is not None and start + length in bounds:
                    return _Found("holds", found)
        return self._held_but_for_small_words(clauses)

    def _word_for_word(self, units: Words, start: int, length: int) -> _Question | None:
        found = self._whole.get(units[start : start + length])
        if found is None or found.text.only_same or _is_in_sum(units, start, start + length):
            return None
        return found

    def _held_but_for_small_words(self, clauses: Clauses) -> _Found | None:
        content, bounds = clauses.content, clauses.content_bounds
        clause_at = {end: number for number, end in enumerate(bounds)}
        for first, start in enumerate(bounds):
            for length in self._clause_lengths.get(content[start : start + MIN_CLAUSE_CONTENT], ()):
                last = clause_at.get(start + length)
                if last is None or _is_in_sum(content, start, start + length):
                    continue
                asked = ", ".join(clauses.texts[first:last])
                for question in self._same.get(content[start : start + length], ()):
                    if have_same_names(asked, question.text.question):
                        return _Found("asks, small words aside,", question)
        return None

    def _shared(self, units: Words, is_user: bool) -> _Found | None:
        """The long question that stands in a turn in pieces, or a text that it shares a long run
        with."""
        listed: _Found | None = None
        for text in self._runs.found_in(units):
            question, pieces = text.question, text.pieces_in(units)
            if is_user and text.is_question and self._is_in_pieces(units, question, pieces):
                return _Found(NEAR_RULES[1], question, not self._keeps_near)
            if listed is None and pieces.has_long_run:
                length = LISTED_RUN * text.scale
                noun = "words" if text.scale == 1 else "characters"
                listed = _Found(f"shares {length} {noun} in a row with", question, False)
        return listed

    def _is_in_pieces(self, units: Words, question: _Question, pieces: _Pieces) -> bool:
        return (
            question.is_long
            and pieces.lost <= MAX_CHANGED_SHARE
            and _has_deciding_of(units, question.units)
            and self._near.is_nearest(question, pieces.lost)
        )

    def _nearly_asked(self, units: Words) -> _Found | None:
        """The question that a turn nearly is."""
        near = self._near.find(units)
        for changed, question in near:
            if (
                question.is_long
                and deciding(units) == deciding(question.units)
                and self._near.is_nearest(question, changed)
            ):
                return _Found(NEAR_RULES[0], question, not self._keeps_near)
        return _Found("is similar to", near[0].question, False) if near else None


def _question(text: EvalText) -> _Question:
    units, content = read_units(text.question)
    scale = 2 if is_unspaced(units) else 1
    return _Question(text, units, content, scale, len(units) >= MIN_LONG * scale)


def _rarest(contents: Collection[Words]) -> frozenset[str]:
    """Of each content the word that the fewest have, of equally rare ones a long one."""
    frequency = Counter(word for content in contents for word in set(content))
    return frozenset(
        min(content, key=lambda word: (frequency[word], -len(word), word)) for content in contents
    )


def _lengths(texts: Iterable[Words], start: int) -> dict[Words, tuple[int, ...]]:
    """The lengths of texts by their first units, the longest first."""
    lengths: dict[Words, set[int]] = defaultdict(set)
    for units in texts:
        lengths[units[:start]].add(len(units))
    return {first: tuple(sorted(found, reverse=True)) for first, found in lengths.items()}


def _has_deciding_of(turn: Words, question: Words) -> bool:
    """Whether a turn has all numbers of a question in their order, and no other ones unless it is
    so much longer that they may be of something else."""
    in_turn, asked = deciding(turn), deciding(question)
    if len(turn) in _near_lengths(len(question)):
        return in_turn == asked
    left = iter(in_turn)
    return all(one in left for one in asked)


def _is_in_sum(units: Words, start: int, end: int) -> bool:
    """Whether an operator goes on before or after: "5 + 7" in "5 + 7 + 3" is another question."""
    return not OPERATORS.isdisjoint((*units[max(0, start - 1) : start], *units[end : end + 1]))


def _hit(kind: Literal["contaminated", "similar"], turn: str, found: _Found) -> Hit:
    text = found.question.text
    reason = f"{found.rule} the question {cut(text.question)!r} of {text.task}"
    return Hit(kind, reason, cut(turn), cut(text.question))


# --- long runs of words ---------------------------------------------------------------------------


class _Pieces(NamedTuple):
    """What of a text stands in a turn in runs of some length."""

    lost: float  # share of its units that do not
    has_long_run: bool


class _Text(NamedTuple):
    """A text whose runs are looked for."""

    units: Words
    scale: int
    question: _Question
    is_question: bool

    def grams(self, length: int) -> Iterator[Words]:
        return _grams(self.units, length * self.scale)

    def pieces_in(self, units: Words) -> _Pieces:
        size = RUN * self.scale
        in_turn = frozenset(_grams(units, size))
        is_taken = bytearray(len(self.units))
        for start, gram in enumerate(self.grams(RUN)):
            if gram in in_turn:
                is_taken[start : start + size] = b"\1" * size
        long_runs = frozenset(_grams(units, LISTED_RUN * self.scale))
        return _Pieces(
            is_taken.count(0) / len(self.units),
            not long_runs.isdisjoint(self.grams(LISTED_RUN)),
        )


class _Runs:
    """The runs of all texts that are long enough, without those that are a pattern."""

    def __init__(self, questions: Sequence[_Question]) -> None:
        self._texts: list[_Text] = []
        by_gram: dict[Words, tuple[int, ...]] = {}
        for question in questions:
            texts = [(question.units, question.scale, question, True)]
            for other in question.text.others:
                units = units_of(other)
                texts.append((units, 2 if is_unspaced(units) else 1, question, False))
            for text in map(_Text._make, texts):
                if len(text.units) < LISTED_RUN * text.scale:
                    continue
                mine = (len(self._texts),)
                self._texts.append(text)
                for gram in text.grams(RUN):
                    before = by_gram.setdefault(gram, mine)
                    if before is not mine and before[-1] != mine[0]:
                        by_gram[gram] = before + mine
        self._by_gram = {
            gram: numbers for gram, numbers in by_gram.items() if not self._is_pattern(numbers)
        }
        self._sizes = sorted({RUN * text.scale for text in self._texts})
        self.starts = frozenset(gram[:MIN_HELD] for gram in self._by_gram)

    def _is_pattern(self, numbers: Sequence[int]) -> bool:
        """Whether a run is of many questions; variants of one count once."""
        if len(numbers) < MIN_PATTERN:
            return False
        questions = (self._texts[number].question for number in numbers)
        return len({_variants_of(question) for question in questions}) >= MIN_PATTERN

    def found_in(self, units: Words) -> list[_Text]:
        """The texts that share a run with a turn, in their order."""
        numbers: set[int] = set()
        for start in range(len(units) - MIN_HELD + 1):
            if units[start : start + MIN_HELD] in self.starts:
                for size in self._sizes:
                    numbers.update(self._by_gram.get(units[start : start + size], ()))
        return [self._texts[number] for number in sorted(numbers)]


def _grams(units: Words, size: int) -> Iterator[Words]:
    return (units[start : start + size] for start in range(len(units) - size + 1))


def _variants_of(question: _Question) -> object:
    """What stands for a question and its variants."""
    text = question.text
    return question.units or text.others if text.cluster is None else (text.task, text.cluster)


# --- near copies ----------------------------------------------------------------------------------


class _NearQuestion(NamedTuple):
    """A question that a turn nearly is; `changed` is the share of the longer one's units."""

    changed: float
    question: _Question


class _Near:
    """The questions by their rare words, and how far each is from the nearest other one."""

    def __init__(self, questions: Sequence[_Question]) -> None:
        distinct = {one.units: one for one in reversed(questions) if one.units}
        self._questions = list(reversed(distinct.values()))
        self._numbers = {one.units: number for number, one in enumerate(self._questions)}
        # Distances are of strings, with a character for each word.
        words = dict.fromkeys(word for one in self._questions for word in one.units)
        self._codes = {word: chr(min(code, MAX_CODE)) for code, word in enumerate(words, start=1)}
        self._strings = [self._string(one.units) for one in self._questions]
        self._by_rare_word = self._index()
        self._rare_words = frozenset(self._by_rare_word)
        self._lengths = frozenset(
            length
            for one in {len(q.units) for q in self._questions}
            for length in _near_lengths(one)
        )
        self._nearest: dict[int, float] = {}  # of those that were asked for

    def _string(self, units: Words) -> str:
        return "".join(map(self._codes.get, units, itertools.repeat("\0")))

    def _index(self) -> dict[str, list[int]]:
        """Questions by their rarest words, one more of them than a near copy may have changed."""
        frequency = Counter(word for one in self._questions for word in set(one.units))
        index: dict[str, list[int]] = defaultdict(list)
        for number, question in enumerate(self._questions):
            num_changes = int(MAX_CHANGED_SHARE * _near_lengths(len(question.units))[-1])
            if num_changes == 0:
                continue  # a question this short has no near copies, only copies
            # A word that stands twice counts twice: changing it once leaves the other.
            by_rarity = sorted(question.units, key=lambda word: (frequency[word], word))
            for word in dict.fromkeys(by_rarity[: num_changes + 1]):
                index[word].append(number)
        return dict(index)

    def find(self, units: Words) -> list[_NearQuestion]:
        """The questions that a turn nearly is, the nearest ones first."""
        if len(units) not in self._lengths:
            return []
        numbers: set[int] = set()
        for word in self._rare_words.intersection(units):
            numbers.update(self._by_rare_word[word])
        if not numbers:
            return []
        found: list[tuple[float, int]] = []
        string, length = self._string(units), len(units)
        for number in numbers:
            other = self._strings[number]
            longest = max(length, len(other))
            limit = int(MAX_CHANGED_SHARE * longest)
            if abs(length - len(other)) <= limit:
                distance = Levenshtein.distance(string, other, score_cutoff=limit)
                if distance <= limit:
                    found.append((distance / longest, number))
        return [_NearQuestion(share, self._questions[number]) for share, number in sorted(found)]

    def is_nearest(self, question: _Question, changed: float) -> bool:
        """Whether a text with this share changed is clearly nearer to a question than the nearest
        other one, its variants aside: less than half as far from it."""
        number = self._numbers[question.units]
        if number not in self._nearest:
            self._nearest[number] = self._nearest_other(number)
        return changed < MAX_OF_NEAREST * self._nearest[number]

    def _nearest_other(self, number: int) -> float:
        """The share by which a question differs from the nearest other one; infinity for one that
        no near copy can be half as far from."""
        widest = MAX_CHANGED_SHARE / MAX_OF_NEAREST
        string, variants = self._strings[number], _variants_of(self._questions[number])
        limit = int(widest * len(string) / (1 - widest))
        return min(
            (
                distance / max(len(string), len(other))
                for other, distance, position in process.extract_iter(
                    string, self._strings, scorer=Levenshtein.distance, score_cutoff=limit
                )
                if position != number and _variants_of(self._questions[position]) != variants
            ),
            default=math.inf,
        )


def _near_lengths(length: int) -> range:
    """How many units a near copy of a question of so many can have."""
    shortest = length - int(MAX_CHANGED_SHARE * length)
    return range(shortest, int(length / (1 - MAX_CHANGED_SHARE)) + 1)
