"""Rows that teach little: too short, too long, repeating themselves, or nearly another row.

Near duplicates are pairs whose sets of three-word phrases overlap by a given share (their Jaccard
similarity). MinHash signatures find the candidates (Broder 1997), of which each is then compared in
full, so that what is dropped is surely similar; a pair at the threshold is found with at least the
probability `MIN_RECALL`. Nothing here reads files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rows.words import Words

if TYPE_CHECKING:
    import numpy as np

PHRASE_WORDS = 3
MIN_WORDS_TO_REPEAT = 20  # shorter answers repeat themselves without being broken
NUM_HASHES = 128  # of a signature
HASH_SEED = 1
MIN_RECALL = 0.99
CHUNK = 2000  # signatures made at once


# --- one row --------------------------------------------------------------------------------------


class Flaw(NamedTuple):
    """What a row is dropped for."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Filters:
    """Limits on a row; None is no limit."""

    min_words: int | None = None  # of a whole conversation, as the next
    max_words: int | None = None
    max_repetition: float | None = None

    def flaw_of(self, messages: Sequence[tuple[str, str]]) -> Flaw | None:
        """Why a conversation of (role, content) is not trained on, or None."""
        if self.min_words is not None or self.max_words is not None:
            number = sum(len(content.split()) for _, content in messages)
            if self.min_words is not None and number < self.min_words:
                return Flaw("too_short", f"{number} words, fewer than {self.min_words}")
            if self.max_words is not None and number > self.max_words:
                return Flaw("too_long", f"{number} words, more than {self.max_words}")
        if self.max_repetition is not None:
            for role, content in messages:
                share = repetition(content) if role == "assistant" else 0.0
                if share > self.max_repetition:
                    reason = f"{share:.0%} of an answer's three-word phrases repeat earlier ones"
                    return Flaw("repetitive", reason)
        return None


def repetition(text: str) -> float:
    """The share of a text's three-word phrases that stand in it before (Rae et al. 2021, table A1);
    0 for fewer than 20 words."""
    words = text.split()
    if len(words) < MIN_WORDS_TO_REPEAT:
        return 0.0
    number = len(words) - PHRASE_WORDS + 1
    return 1 - len(phrases(words)) / number


def phrases(words: Sequence[str]) -> set[str]:
    """The distinct three-word phrases; all words as one, where there are fewer."""
    number = max(1, len(words) - PHRASE_WORDS + 1)
    return {" ".join(words[start : start + PHRASE_WORDS]) for start in range(number)}


# --- pairs of rows --------------------------------------------------------------------------------


class NearDuplicate(NamedTuple):
    """A row, the earlier row that stays, and their similarity."""

    position: int
    kept: int
    similarity: float


def near_duplicates(
    num_rows: int, words_at: Callable[[int], Words], threshold: float
) -> Iterator[NearDuplicate]:
    """Yield each row that is nearly an earlier one that stays, in the order of the rows."""
    signatures = _signatures(num_rows, words_at)
    gone: dict[int, int] = {}  # row -> the row that stays for it
    for position, candidates in _candidates(signatures, threshold):
        words = words_at(position)
        if not words:
            continue  # texts of no words are not alike for that
        mine = phrases(words)
        for kept in sorted({gone.get(one, one) for one in candidates}):
            similarity = jaccard(mine, phrases(words_at(kept)))
            if similarity >= threshold:
                gone[position] = kept
                yield NearDuplicate(position, kept, similarity)
                break


def jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def _signatures(num_rows: int, words_at: Callable[[int], Words]) -> np.ndarray:
    """MinHash signatures, one row each: (num_rows, NUM_HASHES) of uint32."""
    import numpy as np
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] (no stubs)

    signatures = np.empty((num_rows, NUM_HASHES), dtype=np.uint32)
    for start in range(0, num_rows, CHUNK):
        sets = [sorted(phrases(words_at(i))) for i in range(start, min(start + CHUNK, num_rows))]
        matrix = RMinHash.digest_matrix_from_token_sets(sets, NUM_HASHES, HASH_SEED)
        signatures[start : start + len(sets)] = matrix.to_rows()
    return signatures


def _candidates(signatures: np.ndarray, threshold: float) -> Iterator[tuple[int, list[int]]]:
    """Yield rows in order with the earlier ones that share a band of their signatures.

    Of those that share one the first and the last are named: enough, since whatever stays of a
    group of near duplicates is its first, and linear in the rows.
    """
    import numpy as np

    num_bands, band_size = bands_for(threshold)
    mixer = np.random.default_rng(HASH_SEED)
    pairs = []
    for band in range(num_bands):
        columns = signatures[:, band * band_size : (band + 1) * band_size].astype(np.uint64)
        odd = mixer.integers(1, 2**63, size=band_size, dtype=np.uint64) * 2 + 1
        mixed = (columns * odd).sum(axis=1, dtype=np.uint64)  # modulo 2**64
        mixed ^= mixed >> np.uint64(29)
        order = np.argsort(mixed, kind="stable")
        ordered = mixed[order]
        is_same = ordered[1:] == ordered[:-1]
        starts = np.maximum.accumulate(np.where(np.r_[True, ~is_same], np.arange(len(order)), 0))
        later = np.flatnonzero(np.r_[False, is_same])
        pairs.append(np.stack([order[later], order[later - 1]], axis=1))
        pairs.append(np.stack([order[later], order[starts[later]]], axis=1))
    unique = np.unique(np.concatenate(pairs), axis=0)
    firsts = np.flatnonzero(np.r_[True, unique[1:, 0] != unique[:-1, 0]]) if len(unique) else []
    for group in np.split(unique, firsts[1:]) if len(unique) else []:
        yield int(group[0, 0]), group[:, 1].tolist()


def bands_for(threshold: float) -> tuple[int, int]:
    """How many bands of how many hashes: the longest bands that still find a pair at the threshold
    with probability `MIN_RECALL` (Leskovec et al. 2020, section 3.4.2)."""
    for size in range(NUM_HASHES, 1, -1):
        number = NUM_HASHES // size
        if 1 - (1 - threshold**size) ** number >= MIN_RECALL:
            return number, size
    return NUM_HASHES, 1
