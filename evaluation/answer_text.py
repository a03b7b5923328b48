"""Which tokens of a rendered conversation hold the text of its answers.

Bits per byte can be compared between chat formats only where both sides are of one span: the tokens
that hold a byte of an answer's own text, and the bytes of these tokens. End-of-turn tokens,
separators, and think tags with the empty block that a format writes are in neither; a token that
holds text and a separator (" Paris") counts whole, in both. Which messages carry loss is not asked:
what stands in a stretch of loss tokens is the longest message that is found in it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

_THINK_TAG = re.compile(r"</?think>")
_UNFINISHED = "\ufffd"  # what the bytes of a character that is not whole decode to


class AnswerTokens(NamedTuple):
    """Positions of the tokens that hold answer text, and how many UTF-8 bytes they come to."""

    positions: list[int]
    num_bytes: int


class _Piece(NamedTuple):
    """Some tokens that decode to whole characters."""

    start: int  # the first token's position
    end: int
    text: str


class _Stretch(NamedTuple):
    """Characters from `start` to `end` of a text."""

    start: int
    end: int


def answer_tokens(
    contents: Sequence[str], targets_T: Sequence[int], is_loss_T: np.ndarray, tokenizer: Any
) -> AnswerTokens:
    """Find the answers' text among the loss tokens; `contents` are those of all messages.

    Where a stretch of loss tokens holds none of them (as where an answer is calls of tools alone),
    all of its tokens count that are no control tokens.
    """
    special = frozenset(tokenizer.all_special_ids)
    parts_of = [_parts(content) for content in dict.fromkeys(contents)]
    positions: list[int] = []
    num_bytes = 0
    for run in _runs(is_loss_T):
        tokens = targets_T[run.start : run.end]
        pieces = _pieces(tokens, tokenizer)
        is_text = [special.isdisjoint(tokens[one.start : one.end]) for one in pieces]
        # What a format writes must not be taken for an answer such as "think".
        shown = zip(pieces, is_text, strict=True)
        text = "".join(one.text if known else "\0" * len(one.text) for one, known in shown)
        text = _THINK_TAG.sub(lambda tag: "\0" * len(tag[0]), text)
        found = max((_located(parts, text) for parts in parts_of), key=_length, default=[])
        place = 0
        for piece, known in zip(pieces, is_text, strict=True):
            end = place + len(piece.text)
            is_in = any(place < one.end and one.start < end for one in found)
            if piece.text and (is_in if found else known):
                positions += range(run.start + piece.start, run.start + piece.end)
                num_bytes += len(piece.text.encode("utf-8", "replace"))
            place = end
    return AnswerTokens(positions, num_bytes)


def _parts(content: str) -> list[str]:
    """The text of a message between its think tags, which formats write anew."""
    parts = (part.strip() for part in _THINK_TAG.split(content))
    return [part for part in parts if part]


def _length(found: Collection[_Stretch]) -> int:
    return sum(one.end - one.start for one in found)


def _located(parts: Sequence[str], text: str) -> list[_Stretch]:
    """Where the parts of a message stand in a text, in their order; at its end one may be cut."""
    found: list[_Stretch] = []
    place = 0
    for part in parts:
        start = text.find(part, place)
        if start >= 0:
            place = start + len(part)
            found.append(_Stretch(start, place))
            continue
        start = next((i for i in range(place, len(text)) if part.startswith(text[i:])), None)
        if start is not None:
            return [*found, _Stretch(start, len(text))]
    return found


def _runs(is_loss_T: np.ndarray) -> list[_Stretch]:
    """Where tokens that carry loss stand side by side."""
    runs: list[_Stretch] = []
    for position in map(int, is_loss_T.nonzero()[0]):
        if runs and runs[-1].end == position:
            runs[-1] = runs[-1]._replace(end=position + 1)
        else:
            runs.append(_Stretch(position, position + 1))
    return runs


def _pieces(tokens: Sequence[int], tokenizer: Any) -> list[_Piece]:
    """The text that each token adds; tokens that share a character stand together."""

    def decode(some: Sequence[int]) -> str:
        return tokenizer.decode(
            list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    texts = {token: decode([token]) for token in set(tokens)}
    whole = "".join(texts[token] for token in tokens)
    if _UNFINISHED not in whole and whole == decode(tokens):
        return [_Piece(place, place + 1, texts[token]) for place, token in enumerate(tokens)]
    # What a token adds may hang on the one before it: a space at the start, a part of a character.
    pieces: list[_Piece] = []
    before = start = 0
    for end in range(1, len(tokens) + 1):
        text = decode(tokens[before:end])
        if text.endswith(_UNFINISHED) and end < len(tokens):
            continue
        pieces.append(_Piece(start, end, text[len(decode(tokens[before:start])) :]))
        before, start = start, end
    return pieces
