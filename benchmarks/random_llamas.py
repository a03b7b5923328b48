"""Llama models with random weights, in the shapes of published ones: they cost what those do.

They have the demo model's tokenizer, and rows of the vocabulary beyond it that no text leads to.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo_model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
NUM_TOKENIZER_TOKENS = 1536  # token ids below it are text


class Shape(NamedTuple):
    """The settings of a Llama model, and the published one that has them."""

    like: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    is_tied: bool

    @property
    def num_multiplied(self) -> int:
        """Parameters that every token is multiplied by: all but the embedding's table."""
        head_dim = self.hidden // self.heads
        attention = 2 * self.hidden * head_dim * (self.heads + self.key_value_heads)
        mlp = 3 * self.hidden * self.intermediate
        return self.layers * (attention + mlp) + self.vocab * self.hidden


LLAMA_100M = Shape("a small Llama", 32_000, 640, 1920, 12, 10, 5, False)
LLAMA_1B = Shape("TinyLlama-1.1B with 20 layers", 32_000, 2048, 5632, 20, 32, 4, False)
LLAMA_TINY = Shape("none", 1536, 64, 192, 2, 4, 2, False)


def make_model(
    directory: Path,
    shape: Shape,
    *,
    dtype: torch.dtype = torch.bfloat16,
    context_tokens: int = 2048,
    device: str = "cpu",
) -> None:
    """Write a model directory; the same arguments write the same weights on one machine."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(DEMO_MODEL / name, directory / name)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=context_tokens,
        tie_word_embeddings=shape.is_tied,
        bos_token_id=0,
        eos_token_id=1,
        dtype=dtype,
    )
    transformers_logging.disable_progress_bar()
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            LlamaForCausalLM(config).save_pretrained(directory)
    finally:
        torch.set_default_dtype(before)
