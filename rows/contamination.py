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

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple

from rows.near_copies import LISTED_RUN, NearQuestions, Runs, RunText, TurnRuns
from rows.questions import MAX_CHANGED_SHARE, EvalText, Question, near_lengths, read_question
from rows.units import Clauses, clauses_of, content_of, deciding, have_same_names, units_of
from rows.words import OPERATORS, Words, cut

# Lengths in words; of questions in scripts without spaces the same number twice, in characters.
MIN_CONTENT = 2  # of a whole turn that is the same but for small words,
MIN_CLAUSE_CONTENT = 3  # and of a clause
MIN_HELD = 4  # shorter questions only count when they are the whole turn
MIN_HELD_CHARACTERS = 6  # instead of eight: "how many people live in France" has seven in Chinese
MIN_HELD_ANYWHERE = 8  # shorter ones only from and to the end of a clause
# Of the questions that a turn is near, the nearest first: before one that is less than half as far
# from it as from the nearest other one there are only its variants.
MAX_TRIED = 5

NEAR_RULES = ("nearly asks", "holds nearly all of")  # what reasons of near copies begin with


class Hit(NamedTuple):
    """What was found in a row: the rule, the row's text and the evaluation's."""

    kind: Literal["contaminated", "similar"]
    reason: str
    text: str
    other: str


class _Found(NamedTuple):
    """A rule that a turn was found by, and the question; `is_copy` where that one is asked."""

    rule: str
    question: Question
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
        questions = [read_question(text) for text in texts]
        compared = [one for one in questions if not one.text.only_same]
        self._whole: dict[Words, Question] = {}
        for question in (*compared, *questions):
            if question.units:  # a conversation of several turns has no one question
                self._whole.setdefault(question.units, question)
        self._same: dict[Words, list[Question]] = defaultdict(list)
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
        self._runs = Runs(compared)
        self._starts = self._runs.starts | frozenset(self._held_lengths)
        self._near = NearQuestions(compared)

    def find_in(
        self,
        example_id: str,
        messages: Sequence[tuple[str, str]],
        units_of_messages: Sequence[Words] | None = None,
    ) -> Hit | None:
        """What is wrong with a conversation of (role, content), or else the question that it is
        similar to, or None. The units of its messages are made here where they are not at hand."""
        if example_id in self._ids:
            reason = "the same conversation stands in a held-out file"
            return Hit("contaminated", reason, cut(messages[-1][1]), cut(messages[-1][1]))
        similar: Hit | None = None
        if units_of_messages is None:
            units_of_messages = [units_of(content) for _, content in messages]
        for (role, content), units in zip(messages, units_of_messages, strict=True):
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
            has_clause = self._has_clause(content)
        if has_start or has_clause:
            held = self._held(text, units, has_clause)
            if held is not None:
                return held
        shared = self._shared(units, is_user=True) if has_start else None
        near = None if shared is not None and shared.is_copy else self._nearly_asked(units)
        return near if near is not None and (near.is_copy or shared is None) else shared

    def _has_clause(self, content: Words) -> bool:
        """Whether the content of a question stands in a turn's, be it in one clause or not."""
        starts = zip(content, content[1:], content[2:], strict=False)
        return not self._clause_starts.isdisjoint(starts) and any(
            content[start : start + length] in self._same
            for start in range(len(content) - MIN_CLAUSE_CONTENT + 1)
            for length in self._clause_lengths.get(content[start : start + MIN_CLAUSE_CONTENT], ())
        )

    def _has_start(self, units: Words) -> bool:
        """Whether a turn may hold anything: the quick way out for almost every one."""
        starts = zip(units, units[1:], units[2:], units[3:], strict=False)
        return not self._starts.isdisjoint(starts)

    def _held(self, text: str, units: Words, has_clause: bool) -> _Found | None:
        """The question that a turn holds word for word, or asks in one of its clauses."""
        for start in range(len(units) - MIN_HELD + 1):
            for length in self._held_lengths.get(units[start : start + MIN_HELD], ()):
                found = self._word_for_word(units, start, length)
                if found is not None and length >= MIN_HELD_ANYWHERE * found.scale:
                    return _Found("holds", found)
                has_clause = has_clause or found is not None
        if not has_clause:
            return None
        clauses = clauses_of(text)
        units, bounds = clauses.units, dict.fromkeys(clauses.unit_bounds)
        for start in bounds:
            for length in self._held_lengths.get(units[start : start + MIN_HELD], ()):
                found = self._word_for_word(units, start, length)
                if found is not None and start + length in bounds:
                    return _Found("holds", found)
        return self._held_but_for_small_words(clauses)

    def _word_for_word(self, units: Words, start: int, length: int) -> Question | None:
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
        runs = TurnRuns(units)
        for text in self._runs.found_in(units):
            if is_user and text.is_question and self._is_in_pieces(runs, text):
                return _Found(NEAR_RULES[1], text.question, not self._keeps_near)
            if listed is None and text.has_long_run_of(runs):
                length = LISTED_RUN * text.scale
                noun = "words" if text.scale == 1 else "characters"
                listed = _Found(f"shares {length} {noun} in a row with", text.question, False)
        return listed

    def _is_in_pieces(self, runs: TurnRuns, text: RunText) -> bool:
        question = text.question
        if not question.is_long or len(runs.units) < (1 - MAX_CHANGED_SHARE) * len(text.units):
            return False
        lost = text.share_lost_in(runs)
        return (
            lost <= MAX_CHANGED_SHARE
            and _has_deciding_of(runs.units, text.units)
            and self._near.is_nearest(question, lost)
        )

    def _nearly_asked(self, units: Words) -> _Found | None:
        """The question that a turn nearly is."""
        near = self._near.find(units)
        for changed, question in near[:MAX_TRIED]:
            if (
                question.is_long
                and self._near.is_nearest(question, changed)
                and deciding(units) == deciding(question.units)
            ):
                return _Found(NEAR_RULES[0], question, not self._keeps_near)
        return _Found("is similar to", near[0].question, False) if near else None


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
    if len(turn) in near_lengths(len(question)):
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
