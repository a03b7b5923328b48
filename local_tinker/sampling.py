"""Sampling in waves: prompts that came together are prefilled and decoded side by side.

The contract: a sample's tokens and log-probabilities do not depend on what it was batched with.
A wave therefore always has the same number of slots (idle ones hold a one-token dummy), a prompt's
padded length follows from its own length alone, and only prompts of one padded length share a wave.
Each sample draws from its own random stream, made from (seed, index).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch

from local_tinker.choosing import choose
from local_tinker.decoder import Decoding
from local_tinker.engine import Engine
from local_tinker.sample_rows import Row
from local_tinker.transformers_decoding import TransformersDecoding


class _Slots(Protocol):
    """Slots on their way through a model."""

    def prefill(self, prompts: Sequence[Sequence[int]], scored: Collection[int]) -> torch.Tensor:
        """Compute the prompts of the first slots; returns the next token's logits of all slots."""
        ...

    def prompt_logits(self, slot: int) -> torch.Tensor:
        """Logits at each token of a prompt that was to be `scored`; may be called once."""
        ...

    def decode(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """Logits (slots, vocabulary) of what follows one more token of every slot."""
        ...


class Wave:
    """Rows of one wave key on their way; each `advance` gives every unfinished row a token."""

    def __init__(self, engine: Engine, rows: list[Row]) -> None:
        """Load the weights. Outside inference mode: training could not touch them otherwise."""
        self.engine = engine
        self.rows = rows
        self.key = rows[0].request.wave_key
        num_slots = self.key.num_slots(engine)
        assert 0 < len(rows) <= num_slots
        self._sampler = engine.acquire_sampler(self.key.weights)
        padded = self.key.padded_length_tokens
        self._slots: _Slots | None = (
            TransformersDecoding(engine.model, num_slots, padded, engine.max_context_length)
            if self._sampler.decoder is None
            else Decoding(self._sampler.decoder, num_slots, padded, engine.piece_tokens)
        )
        self._is_prefilled = False
        self._next_B = [0] * num_slots

    @property
    def is_done(self) -> bool:
        return all(row.is_done for row in self.rows)

    def close(self) -> None:
        """Let go of the weights and the cache."""
        self.engine.release_sampler(self._sampler)
        self._slots = None

    def advance(self) -> None:
        assert self._slots is not None, "the wave is closed"
        self.engine.activate_sampler(self._sampler)
        with torch.inference_mode():
            if self._is_prefilled:
                tokens_B = torch.tensor(self._next_B, device=self.engine.device)
                logits_BV = self._slots.decode(tokens_B)
            else:
                logits_BV = self._prefill(self._slots)
            live = [(slot, row) for slot, row in enumerate(self.rows) if not row.is_done]
            choices = choose(logits_BV, [row.wish(slot) for slot, row in live])
        for (slot, row), choice in zip(live, choices, strict=True):
            row.take(choice, self.engine.tokenizer)
            self._next_B[slot] = choice.token

    def _prefill(self, slots: _Slots) -> torch.Tensor:
        scored = [  # once per request; all its rows have the same prompt
            slot
            for slot, row in enumerate(self.rows)
            if self.key.with_prompt_logits and row.index == 0
        ]
        logits_BV = slots.prefill([row.request.prompt for row in self.rows], scored)
        for slot in scored:
            self.rows[slot].score_prompt(slots.prompt_logits(slot))
        self._is_prefilled = True
        return logits_BV
