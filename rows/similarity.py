"""Texts compared by their words: which rows are like failed questions, and topics where none are
given. TF-IDF and k-means of scikit-learn; the same seed gives the same topics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

MAX_TOPICS = 20
ROWS_PER_TOPIC = 8  # about the square of the number of topics, times this, is the number of rows
MAX_FITTED = 20_000  # rows that words are weighed and topics are found by
NAME_WORDS = 3
MAX_CELLS = 4_000_000  # texts times questions that are compared at once: 32 MB
MAX_WORDS = 20_000
TOKEN_PATTERN = r"\w+|[^\w\s]"  # words, and marks: "2 + 3" has neither long words nor any other


def likeness_to(questions: Sequence[str], texts: Sequence[str]) -> list[Likeness]:
    """For each text the question that it is likest to; at least one of each."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer: Any = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=TOKEN_PATTERN
    )
    of_texts, of_questions = vectorizer.fit_transform(texts), vectorizer.transform(questions).T
    found: list[Likeness] = []
    num_rows = max(1, MAX_CELLS // len(questions))
    for start in range(0, len(texts), num_rows):
        cosines = (of_texts[start : start + num_rows] @ of_questions).toarray()
        best = cosines.argmax(axis=1).tolist()
        found += (
            Likeness(float(cosines[row, column]), questions[int(column)])
            for row, column in enumerate(best)
        )
    return found


class TextTopics:
    """Topics found in the words of texts, each called by those that it has more of than others."""

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        step = max(1, len(texts) // MAX_FITTED)
        fitted = texts[::step]
        number = min(MAX_TOPICS, max(2, round(math.sqrt(len(fitted) / ROWS_PER_TOPIC))))
        number = min(number, len(set(fitted)))
        self._vectorizer: Any = TfidfVectorizer(
            sublinear_tf=True, max_features=MAX_WORDS, token_pattern=TOKEN_PATTERN
        )
        vectors = self._vectorizer.fit_transform(fitted)
        self._means: Any = _k_means(number, seed).fit(vectors)
        words = self._vectorizer.get_feature_names_out()
        centres = self._means.cluster_centers_
        usual = centres.mean(axis=0)
        self.names = [_named(dict(zip(words, centre - usual, strict=True))) for centre in centres]

    def of(self, texts: Sequence[str]) -> list[str]:
        """The topic of each text."""
        if not texts:
            return []
        return [self.names[code] for code in self._means.predict(self._vectorizer.transform(texts))]


def _k_means(number: int, seed: int) -> Any:
    from sklearn.cluster import KMeans

    return KMeans(number, n_init=3, random_state=seed)  # pyright: ignore[reportArgumentType]


def _named(excess: dict[str, float]) -> str:
    """The words with the highest excess, of equal ones the longer."""
    words = sorted(excess, key=lambda word: (-round(excess[word], 6), -len(word), word))
    return " ".join(words[:NAME_WORDS])


class Likeness(NamedTuple):
    """How like a row is to the failed question that it is likest to, from 0 to 1."""

    score: float
    question: str
