"""What every export can be asked once the program that a user would take has loaded it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Loaded(Protocol):
    """An export, loaded. Tokens are ids of the base model's tokenizer."""

    def logprobs(self, tokens: Sequence[int]) -> list[float]:
        """The natural log-probability of each token but the first, given those before it."""
        ...

    def greedy(self, prompt: Sequence[int], max_tokens: int, stop: Sequence[int]) -> list[int]:
        """The likeliest tokens one by one, up to and with the first that the export's own files say
        ends an answer; `stop` are those that should."""
        ...

    def tokens_of(self, text: str) -> list[int]:
        """A plain text in tokens, without what is put around one; no word of it is read as a
        special token (transformers: `split_special_tokens`, llama.cpp: `parse_special` false)."""
        ...

    def prompt_of(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """A conversation that ends with the user, as the export's chat template writes it."""
        ...
