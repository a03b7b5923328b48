"""Questions that a text is nearly like, or that it shares long runs of words with. Pure."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from rows.questions import MAX_CHANGED_SHARE, Question, near_lengths, scale_of
from rows.units import units_of
from rows.words import Words

# Lengths are in words, as those of questions.
RUN = 8  # words in a row that count as a long question's own
LISTED_RUN = 13  # words in a row that two texts do not share by chance (Brown et al. 2020, app. C)
MIN_PATTERN = 5  # questions; a run that so many share is their pattern, and no sign of any
MAX_SHARING = 64  # texts that are remembered of a run, so that a template costs no more than they
MAX_OF_NEAREST = 0.5  # of the way to the nearest other question; a near copy is nearer than that
MAX_CODE = 0x10FFFF  # of a character; words beyond share one
START = 4  # units that runs are looked up by

# --- long runs of words ---------------------------------------------------------------------------


class TurnRuns:
    """The runs of a turn by their length, each made once."""

    def __init__(self, units: Words) -> None:
        self.units = units
        self._of_length: dict[int, frozenset[Words]] = {}

    def of(self, length: int) -> frozenset[Words]:
        if length not in self._of_length:
            self._of_length[length] = frozenset(_grams(self.units, length))
        return self._of_length[length]


class RunText(NamedTuple):
    """A text whose runs are looked for."""

    units: Words
    scale: int
    question: Question
    is_question: bool

    def share_lost_in(self, runs: TurnRuns) -> float:
        """The share of its units that do not stand in a turn in runs of eight words."""
        size = RUN * self.scale
        in_turn, is_taken = runs.of(size), bytearray(len(self.units))
        for start, gram in enumerate(_grams(self.units, size)):
            if gram in in_turn:
                is_taken[start : start + size] = b"\1" * size
        return is_taken.count(0) / len(self.units)

    def has_long_run_of(self, runs: TurnRuns) -> bool:
        size = LISTED_RUN * self.scale
        return not runs.of(size).isdisjoint(_grams(self.units, size))


class Runs:
    """The runs of all texts that are long enough, without those that are a pattern."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._texts: list[RunText] = []
        by_gram: dict[Words, tuple[int, ...]] = {}
        for question in questions:
            texts = [(question.units, question.scale, question, True)]
            for other in question.text.others:
                units = units_of(other)
                texts.append((units, scale_of(units), question, False))
            for text in map(RunText._make, texts):
                if len(text.units) < LISTED_RUN * text.scale:
                    continue
                mine = (len(self._texts),)
                self._texts.append(text)
                for gram in _grams(text.units, RUN * text.scale):
                    before = by_gram.setdefault(gram, mine)
                    if before[-1] != mine[0] and len(before) < MAX_SHARING:
                        by_gram[gram] = before + mine
        self._by_gram = {
            gram: numbers for gram, numbers in by_gram.items() if not self._is_pattern(numbers)
        }
        self._sizes = sorted({RUN * text.scale for text in self._texts})
        self.starts = frozenset(gram[:START] for gram in self._by_gram)

    def _is_pattern(self, numbers: Sequence[int]) -> bool:
        """Whether a run is of many questions; variants of one count once."""
        if len(numbers) < MIN_PATTERN:
            return False
        questions = (self._texts[number].question for number in numbers)
        return len({question.variants for question in questions}) >= MIN_PATTERN

    def found_in(self, units: Words) -> list[RunText]:
        """The texts that share a run with a turn, in their order."""
        numbers: set[int] = set()
        for start in range(len(units) - START + 1):
            if units[start : start + START] in self.starts:
                for size in self._sizes:
                    numbers.update(self._by_gram.get(units[start : start + size], ()))
        return [self._texts[number] for number in sorted(numbers)]


def _grams(units: Words, size: int) -> Iterator[Words]:
    return (units[start : start + size] for start in range(len(units) - size + 1))


# --- near copies ----------------------------------------------------------------------------------


class NearQuestion(NamedTuple):
    """A question that a turn nearly is; `changed` is the share of the longer one's units."""

    changed: float
    question: Question


class NearQuestions:
    """The questions by their rare words, and how far each is from the nearest other one."""

    def __init__(self, questions: Sequence[Question]) -> None:
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
            for length in near_lengths(one)
        )
        self._nearest: dict[int, float] = {}  # of those that were asked for

    def _string(self, units: Words) -> str:
        return "".join(map(self._codes.get, units, itertools.repeat("\0")))

    def _index(self) -> dict[str, list[int]]:
        """Questions by their rarest words, one more of them than a near copy may have changed."""
        frequency = Counter(word for one in self._questions for word in set(one.units))
        index: dict[str, list[int]] = defaultdict(list)
        for number, question in enumerate(self._questions):
            num_changes = int(MAX_CHANGED_SHARE * near_lengths(len(question.units))[-1])
            if num_changes == 0:
                continue  # a question this short has no near copies, only copies
            # A word that stands twice counts twice: changing it once leaves the other.
            by_rarity = sorted(question.units, key=lambda word: (frequency[word], word))
            for word in dict.fromkeys(by_rarity[: num_changes + 1]):
                index[word].append(number)
        return dict(index)

    def find(self, units: Words) -> list[NearQuestion]:
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
        return [NearQuestion(share, self._questions[number]) for share, number in sorted(found)]

    def is_nearest(self, question: Question, changed: float) -> bool:
        """Whether a text with this share changed is clearly nearer to a question than the nearest
        other one, its variants and the same question in other small words aside: less than half
        as far from it."""
        number = self._numbers[question.units]
        if number not in self._nearest:
            self._nearest[number] = self._nearest_other(number)
        return changed < MAX_OF_NEAREST * self._nearest[number]

    def _nearest_other(self, number: int) -> float:
        """The share by which a question differs from the nearest other one; infinity for one that
        no near copy can be half as far from."""
        widest = MAX_CHANGED_SHARE / MAX_OF_NEAREST
        string, mine = self._strings[number], self._questions[number]
        limit = int(widest * len(string) / (1 - widest))
        return min(
            (
                distance / max(len(string), len(other))
                for other, distance, position in process.extract_iter(
                    string, self._strings, scorer=Levenshtein.distance, score_cutoff=limit
                )
                if (another := self._questions[position]).variants != mine.variants
                and another.content != mine.content
            ),
            default=math.inf,
        )
