"""A key-value cache that grows in blocks, of lengths at which attention is reproducible.

torch's CPU attention gives each thread a scratch buffer of (length + 2 + head size) floats per
query. Where that is no multiple of 16 bytes, the threads' buffers are aligned differently and their
last bits differ, so a row's result would depend on which thread, and so which slot, it falls to
(seen with torch 2.13 on 2 to 8 threads). Lengths of 2 modulo 16, and so modulo 64, keep every
buffer aligned. The block's unwritten end is zeros that the causal mask hides.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

BLOCK_TOKENS = 64


def capacity(length: int, block: int) -> int:
    """The smallest length of 2 modulo `block` that holds `length` tokens."""
    return -(-(length - 2) // block) * block + 2


class BlockLayer(DynamicLayer):
    """One layer's keys and values: the prompt as it is, then room for a block of tokens at a time.

    It also serves layers with a sliding window: their mask hides what is out of the window.
    """

    length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start, self.length = self.length, self.length + key_states.shape[-2]
        if start == 0:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        assert self.keys is not None
        assert self.values is not None
        missing = capacity(self.length, BLOCK_TOKENS) - self.keys.shape[-2]
        if missing > 0:
            self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, missing))
            self.values = torch.nn.functional.pad(self.values, (0, 0, 0, missing))
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        end = self.length + query_length
        return (end if self.length == 0 else capacity(end, BLOCK_TOKENS)), 0

    def get_seq_length(self) -> int:
        return self.length


def make_cache(config: Any) -> DynamicCache:
    """A cache for a model; layers that are no plain attention keep transformers' own kind."""
    cache = DynamicCache(config=config)
    cache.layers = [
        BlockLayer() if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) else layer
        for layer in cache.layers
    ]
    return cache
