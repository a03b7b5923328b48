"""Slots on their way through a model's own transformers forward, with PEFT's adapters in it.

For every family that `decoder_weights` does not know. There is always a column of padding, so that
no wave is free of it and takes another kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from local_tinker.kv_cache import make_cache


class TransformersDecoding:
    """The same calls as `decoder.Decoding`; the caller makes the right adapter active."""

    def __init__(
        self, model: Any, num_slots: int, padded_length_tokens: int, context_tokens: int
    ) -> None:
        self._model = model
        # Rows that have ended go on in their slots, and must not leave the context: a table of
        # positions ends there, and dynamic rotary positions would stay changed for all later work.
        self._last_position = context_tokens - 1
        self._device = model.get_input_embeddings().weight.device
        self._cache: Any = make_cache(model.config)
        self._mask_BT = torch.zeros((num_slots, padded_length_tokens), dtype=torch.long)
        self._prompt_logits: dict[int, Tensor] = {}

    def prefill(self, prompts: Sequence[Sequence[int]], scored: Collection[int]) -> Tensor:
        tokens_BT = torch.zeros_like(self._mask_BT)
        self._mask_BT[:, -1] = 1  # slots that idle: one token
        for slot, prompt in enumerate(prompts):
            tokens_BT[slot, -len(prompt) :] = torch.tensor(prompt)
            self._mask_BT[slot, -len(prompt) :] = 1
        self._mask_BT = self._mask_BT.to(self._device)
        logits_BTV = self._model(
            input_ids=tokens_BT.to(self._device),
            attention_mask=self._mask_BT,
            position_ids=(self._mask_BT.cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=0 if scored else 1,
        ).logits
        for slot in scored:
            self._prompt_logits[slot] = logits_BTV[slot, -len(prompts[slot]) :]
        return logits_BTV[:, -1, :]

    def prompt_logits(self, slot: int) -> Tensor:
        return self._prompt_logits.pop(slot)

    def decode(self, tokens_B: Tensor) -> Tensor:
        lengths_B1 = self._mask_BT.sum(dim=1, keepdim=True)
        self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(lengths_B1)], dim=1)
        return self._model(
            input_ids=tokens_B[:, None],
            attention_mask=self._mask_BT,
            position_ids=lengths_B1.clamp(max=self._last_position),
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1, :]
