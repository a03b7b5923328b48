"""Evaluation questions in training rows: found before the first step, and again in each selection.

A row is contaminated when one of its user turns is an evaluation question after `normalise`, or
holds one of at least four words on whole words; when one of its turns shares 13 words in a row with
an evaluation text; or when a user turn is nearly a question (at most a fifth of the words changed)
and the reply gives the same answer. A near copy with another answer ("capital of Spain" beside
"capital of France") is only listed as similar, and so is one that is near to five questions with
its answer ("kind of Paris" beside "kind of Rome": city): a pattern with few answers is no copy.
Phrases that many questions of a task share are the task's template and no sign of anything.
Pure: texts in, findings out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from rapidfuzz.distance import Levenshtein

from rows.words import OPERATORS, Words, cut, words_of

MIN_CONTAINED_WORDS = 4  # shorter questions only count as contained when they are the whole turn
NGRAM = 13  # words in a row that two texts do not share by chance (Brown et al. 2020, appendix C)
MAX_CHANGED_SHARE = 0.2  # of the words of the longer text, in a near copy
TEMPLATE_SHARE = 0.1  # of a task's questions; what more of them share is no question's own
MIN_TEMPLATE = 5  # questions; what fewer share may be a question and its variants


@dataclass(frozen=True)
class EvalText:
    """A question that must not be trained on, with the answers that are accepted.

    `others` are further texts of it (a conversation's turns) that no row may share 13 words with.
    """

    task: str
    question: str
    answers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    only_same: bool = False  # no rule but the same question: rows of a split are like one another


class Hit(NamedTuple):
    """What was found in a row: the rule, the row's text and the evaluation's."""

    kind: Literal["contaminated", "similar"]
    reason: str
    text: str
    other: str


# --- the questions, ready to be looked for --------------------------------------------------------


class _Question(NamedTuple):
    text: EvalText
    words: Words
    answers: tuple[Words, ...]


class _Turn(NamedTuple):
    role: str
    content: str
    words: Words


class EvalTexts:
    """The questions of all evaluation tasks, and the held-out conversations by their ids."""

    def __init__(self, texts: Iterable[EvalText], ids: Collection[str] = ()) -> None:
        self._ids = frozenset(ids)
        self._questions = [
            _Question(text, words_of(text.question), tuple(map(words_of, text.answers)))
            for text in texts
        ]
        self._whole: dict[Words, _Question] = {}
        self._contained: dict[Words, list[_Question]] = defaultdict(list)
        for question in self._questions:
            if question.words:  # a conversation of several turns has no one question
                self._whole.setdefault(question.words, question)
            if len(question.words) >= MIN_CONTAINED_WORDS and not question.text.only_same:
                self._contained[question.words[:MIN_CONTAINED_WORDS]].append(question)
        self._ngrams = self._ngrams_by_start()
        self._starts = frozenset(self._contained) | frozenset(self._ngrams)
        self._by_rare_word = self._near_index()
        self._longest_near = max((_longest_near(q) for q in self._questions), default=0)

    def find_in(self, example_id: str, messages: Sequence[tuple[str, str]]) -> Hit | None:
        """What is wrong with a conversation of (role, content), or else the question that it is
        similar to, or None."""
        if example_id in self._ids:
            reason = "the same conversation stands in a held-out file"
            return Hit("contaminated", reason, cut(messages[-1][1]), cut(messages[-1][1]))
        turns = [_Turn(role, content, words_of(content)) for role, content in messages]
        for turn in turns:
            found = self._find_copy(turn)
            if found is not None:
                rule, question = found
                return _hit("contaminated", rule, turn, question)
        similar: Hit | None = None
        for turn, reply in pairwise(turns):
            if turn.role != "user" or reply.role != "assistant":
                continue
            near = list(self._near(turn.words))
            same = [question for question in near if _has_answer(reply.words, question)]
            if 0 < len(same) < MIN_TEMPLATE:
                rule = "nearly asks, with the same answer,"
                return _hit("contaminated", rule, turn, same[0])
            if near:
                similar = similar or _hit("similar", "is similar to", turn, near[0])
        return similar

    def _find_copy(self, turn: _Turn) -> tuple[str, _Question] | None:
        """The question that a turn holds or shares a long phrase with, and by which rule."""
        words, is_user = turn.words, turn.role == "user"
        if is_user and (whole := self._whole.get(words)) is not None:
            return "asks", whole
        starts = zip(words, words[1:], words[2:], words[3:], strict=False)
        if self._starts.isdisjoint(starts):  # the quick way out for almost every turn
            return None
        for position in range(len(words) - MIN_CONTAINED_WORDS + 1):
            start = words[position : position + MIN_CONTAINED_WORDS]
            for question in self._contained.get(start, ()) if is_user else ():
                end = position + len(question.words)
                beside = {*words[position - 1 : position], *words[end : end + 1]}
                # "5 + 7" in "5 + 7 + 3" is another question.
                if words[position:end] == question.words and not beside & OPERATORS:
                    return "holds", question
            shared = self._ngrams.get(start, {}).get(words[position : position + NGRAM])
            if shared is not None:
                return f"shares {NGRAM} words in a row with", shared
        return None

    def _ngrams_by_start(self) -> dict[Words, dict[Words, _Question]]:
        """The 13-grams of all texts by their first words, without those of a task's template."""
        found: dict[Words, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        sizes = Counter(question.text.task for question in self._questions)
        for number, question in enumerate(self._questions):
            texts = () if question.text.only_same else question.text.others
            for words in (question.words, *map(words_of, texts)):
                for ngram in () if question.text.only_same else _ngrams(words):
                    found[ngram][question.text.task].add(number)
        by_start: dict[Words, dict[Words, _Question]] = defaultdict(dict)
        for ngram, by_task in found.items():
            own = [
                numbers
                for task, numbers in by_task.items()
                if len(numbers) < MIN_TEMPLATE or len(numbers) <= TEMPLATE_SHARE * sizes[task]
            ]
            if own:
                question = self._questions[min(own[0])]
                by_start[ngram[:MIN_CONTAINED_WORDS]][ngram] = question
        return dict(by_start)

    def _near_index(self) -> dict[str, list[_Question]]:
        """Questions by their rarest words, one more of them than a near copy may have changed."""
        frequency = Counter(word for question in self._questions for word in set(question.words))
        index: dict[str, list[_Question]] = defaultdict(list)
        for question in self._questions:
            num_changes = int(MAX_CHANGED_SHARE * _longest_near(question))
            if num_changes == 0 or question.text.only_same:
                continue  # a question this short has no near copies, only copies
            # A word that stands twice counts twice: changing it once leaves the other.
            by_rarity = sorted(question.words, key=lambda word: (frequency[word], word))
            for word in set(by_rarity[: num_changes + 1]):
                index[word].append(question)
        return dict(index)

    def _near(self, words: Words) -> Iterator[_Question]:
        """The questions that a turn nearly is, the nearest ones first."""
        if len(words) > self._longest_near:
            return
        distances: dict[int, tuple[int, _Question]] = {}
        for word in dict.fromkeys(words):  # in their order: of equally near ones the same is named
            for question in self._by_rare_word.get(word, ()):
                if id(question) in distances:
                    continue
                longest = max(len(words), len(question.words))
                limit = int(MAX_CHANGED_SHARE * longest)
                if longest - min(len(words), len(question.words)) > limit:
                    continue
                distance = Levenshtein.distance(words, question.words, score_cutoff=limit)
                if distance <= limit:
                    distances[id(question)] = distance, question
        yield from (question for _, question in sorted(distances.values(), key=lambda one: one[0]))


def _longest_near(question: _Question) -> int:
    """Words of the longest text that can be a near copy."""
    return int(len(question.words) / (1 - MAX_CHANGED_SHARE))


def _ngrams(words: Sequence[str]) -> Iterator[Words]:
    return (tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1))


def _has_answer(reply: Words, question: _Question) -> bool:
    """Whether a reply is an accepted answer, or holds one on whole words."""
    return any(
        answer == reply[start : start + len(answer)]
        for answer in question.answers
        if answer
        for start in range(len(reply) - len(answer) + 1)
    )


def _hit(
    kind: Literal["contaminated", "similar"], rule: str, turn: _Turn, question: _Question
) -> Hit:
    reason = f"{rule} the question {cut(question.text.question)!r} of {question.text.task}"
    return Hit(kind, reason, cut(turn.content), cut(question.text.question))
