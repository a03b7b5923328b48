"""Sampling in waves: prompts that came together are prefilled and decoded over one KV cache.

The contract: a sample's tokens and log-probabilities do not depend on what it was batched with.
A wave therefore always has the same number of rows (idle ones hold a one-token dummy), a prompt's
padded length follows from its own length alone, and only prompts of one padded length share a wave.
There is always a column of padding, so that no wave is free of it and takes another kernel.
Each sample draws from its own random stream, made from (seed, index).
"""

from __future__ import annotations

from typing import Any

import torch

from local_tinker.choosing import choose
from local_tinker.engine import Engine
from local_tinker.kv_cache import make_cache
from local_tinker.sample_rows import Row


class Wave:
    """Rows of one wave key on their way; each `advance` gives every unfinished row a token."""

    def __init__(self, engine: Engine, rows: list[Row]) -> None:
        """Load the weights. Outside inference mode: training could not touch them otherwise."""
        self.engine = engine
        self.rows = rows
        self.key = rows[0].request.wave_key
        self._num_slots = self.key.num_slots(engine)
        assert 0 < len(rows) <= self._num_slots
        self._sampler = engine.acquire_sampler(self.key.weights)
        self._cache: Any = make_cache(engine.model.config)
        self._is_prefilled = False
        self._mask_BT = torch.zeros(0)
        self._next_B = torch.zeros(self._num_slots, dtype=torch.long)

    @property
    def is_done(self) -> bool:
        return all(row.is_done for row in self.rows)

    def close(self) -> None:
        """Let go of the weights and the cache."""
        self.engine.release_sampler(self._sampler)
        self._cache = None

    def advance(self) -> None:
        self.engine.activate_sampler(self._sampler)
        with torch.inference_mode():
            logits_BV = self._decode() if self._is_prefilled else self._prefill()
            live = [(slot, row) for slot, row in enumerate(self.rows) if not row.is_done]
            choices = choose(logits_BV, [row.wish(slot) for slot, row in live])
            for (slot, row), choice in zip(live, choices, strict=True):
                row.take(choice, self.engine.tokenizer)
                self._next_B[slot] = choice.token

    def _prefill(self) -> torch.Tensor:
        shape = (self._num_slots, self.key.padded_length_tokens)
        tokens_BT, mask_BT = torch.zeros(shape, dtype=torch.long), torch.zeros(shape).long()
        mask_BT[:, -1] = 1  # dummy rows: one token
        for slot, row in enumerate(self.rows):
            length = len(row.request.prompt)
            tokens_BT[slot, -length:] = torch.tensor(row.request.prompt)
            mask_BT[slot, -length:] = 1
        self._mask_BT = mask_BT.to(self.engine.device)
        output = self.engine.model(
            input_ids=tokens_BT.to(self.engine.device),
            attention_mask=self._mask_BT,
            position_ids=(self._mask_BT.cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=0 if self.key.with_prompt_logits else 1,
        )
        self._is_prefilled = True
        if self.key.with_prompt_logits:
            for slot, row in enumerate(self.rows):
                if row.index == 0:  # once per request; all its rows have the same prompt
                    row.score_prompt(output.logits[slot, -len(row.request.prompt) :])
        return output.logits[:, -1, :]

    def _decode(self) -> torch.Tensor:
        lengths_B1 = self._mask_BT.sum(dim=1, keepdim=True)
        self._mask_BT = torch.cat(
            [self._mask_BT, self._mask_BT.new_ones((self._num_slots, 1))], dim=1
        )
        return self.engine.model(
            input_ids=self._next_B[:, None].to(self.engine.device),
            attention_mask=self._mask_BT,
            position_ids=lengths_B1,
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1, :]
