"""What single tokens are called: the text that each adds, its bytes, and where it stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from local_tinker.openai_text import UNFINISHED

_BYTE = re.compile("<0x([0-9A-F]{2})>")  # as SentencePiece writes a byte that is no token
NUM_CONTEXT_TOKENS = 8  # before a place, of which the last may be parts of one character


class TokenName(NamedTuple):
    """A token's text and bytes; of a part of a character the text is its bytes, written out."""

    text: str
    bytes: list[int] | None  # None where the tokenizer does not tell which it stands for
    is_part: bool = False

    @property
    def in_texts(self) -> str:
        """Its name in text completions."""
        return f"bytes:{self.text}" if self.is_part else self.text


class TokenNames:
    """The names of a tokenizer's tokens, each found once: an answer with the likeliest tokens
    beside each of its own has thousands of them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._context = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._context_text = tokenizer.decode(self._context)
        self._names: dict[tuple[int, bool], TokenName] = {}

    def name(self, token: int, *, is_first: bool) -> TokenName:
        """How OpenAI names a token; the first of a text may not show its space."""
        key = (token, is_first)
        found = self._names.get(key)
        if found is None:
            found = self._names[key] = self._found(token, is_first)
        return found

    def _found(self, token: int, is_first: bool) -> TokenName:
        text = self.tokenizer.decode([token])
        if not is_first:
            both = self.tokenizer.decode([*self._context, token])
            if both.startswith(self._context_text):
                text = both[len(self._context_text) :]
        if UNFINISHED not in text:
            return TokenName(text, list(text.encode()))
        own = _own_bytes(self.tokenizer, token)
        if own is None:
            return TokenName(text, None)
        return TokenName("".join(f"\\x{byte:02x}" for byte in own), list(own), is_part=True)


def _own_bytes(tokenizer: Any, token: int) -> bytes | None:
    """The bytes of a token by its entry in the vocabulary, where that is written in one of the two
    usual ways; checked by the text that they decode to."""
    entry = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(entry, str):
        return None
    if found := _BYTE.fullmatch(entry):
        return bytes([int(found[1], 16)])
    own = bytes(_BYTES.get(character, 0) for character in entry)
    is_told = own.decode(errors="replace") == tokenizer.decode([token])
    return own if is_told else None


def _byte_characters() -> dict[str, int]:
    """GPT-2's characters for bytes, which all byte-level tokenizers write their entries in."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {
        chr(0x100 + place): byte for place, byte in enumerate(hidden)
    }


_BYTES = _byte_characters()


def text_offsets(tokenizer: Any, tokens: Sequence[int], num_sent: int, text: str) -> list[int]:
    """Where the text of each token after the first `num_sent` begins in `text`, in characters.

    Parts of one character begin where it does. A special token that the text does not show has no
    length: one before a text that was sent without it, or the one that ended the answer.
    """
    decode: Callable[[Sequence[int]], str] = tokenizer.decode
    specials = frozenset(tokenizer.all_special_ids)
    window = list(tokens[max(0, num_sent - NUM_CONTEXT_TOKENS) : num_sent])
    known = decode(window).rstrip(UNFINISHED)
    offset, offsets = len(decode(tokens[:num_sent]).rstrip(UNFINISHED)), []
    for token in tokens[num_sent:]:
        offsets.append(offset)
        longer = decode([*window, token])
        if longer.endswith(UNFINISHED):  # its character, if it is one, is not whole
            window.append(token)
            continue
        piece = longer[len(known) :]
        if token not in specials or text.startswith(piece, offset):
            offset += len(piece)
        window, known = [token], decode([token])
    return offsets
