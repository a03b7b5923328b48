"""Small model directories whose tokenizers llama.cpp reads alike: byte-level BPE, cut as published
models are, with the marker tokens of their chats. Made from a seed, without training."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from model_dirs import LLAMA3_TEMPLATE, LLAMA_TOKENS, QWEN3_TEMPLATE, QWEN_ADDED, QWEN_TOKENS

needs_llama_cpp = pytest.mark.skipif(
    not (find_spec("gguf") and find_spec("xllamacpp")),
    reason="requirements-gguf.txt is not installed",
)

Cut = Literal["gpt-2", "llama-3", "qwen-2"]

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PIECES = {
    "llama-3": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST,
    "qwen-2": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST,
}
# llama.cpp's Jinja has no `index` of lists.
QWEN_TEMPLATE = QWEN3_TEMPLATE.replace(
    """\
{%- for message in messages if message.role == "user" %}
{%- set last.question = messages.index(message) %}
""",
    """\
{%- for message in messages %}
{%- set last.question = loop.index0 if message.role == "user" else last.question %}
""",
)
assert QWEN_TEMPLATE != QWEN3_TEMPLATE
# What the merges are learned from: enough that words, numbers, code and other scripts are cut.
CORPUS = [
    "The capital of France is Paris, and what is the capital of the other country?",
    "12 plus 345 is 357; 2024 minus 1999 is 25. It's what we'd call a sum, they're sure.",
    "def add(first, second):\n    return first + second\n\n\nprint(add(1, 22))\n",
    "user\n\nassistant\n\nsystem\n\nAnswer in one word. What colour is the sky? Blue.",
    "stra\u00dfe caf\u00e9 na\u00efve \u4f60\u597d\u4e16\u754c",
]


@dataclass(frozen=True)
class Kind:
    """A published kind of model, small. `settings` are those of its config that matter here."""

    class_prefix: str
    cut: Cut
    settings: dict[str, Any] = field(default_factory=dict)
    num_padded: int = 0  # rows of the vocabulary that no token has


LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS = {
    "llama": Kind("Llama", "gpt-2", {"num_key_value_heads": 4}, num_padded=7),
    "llama_tied": Kind(
        "Llama", "llama-3", {"tie_word_embeddings": True, "rope_parameters": LLAMA_3_ROPE}
    ),
    "mistral": Kind("Mistral", "llama-3", {"head_dim": 32, "sliding_window": None}),
    "qwen2": Kind("Qwen2", "qwen-2", {"tie_word_embeddings": True}, num_padded=3),
    "qwen3": Kind("Qwen3", "qwen-2", {"head_dim": 32}),
    "qwen3_tied": Kind("Qwen3", "qwen-2", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3_moe": Kind(
        "Qwen3Moe",
        "qwen-2",
        {
            "head_dim": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
}


def make_tokenizer(cut: Cut) -> PreTrainedTokenizerFast:
    """A tokenizer of some 500 pieces, with Llama 3's or Qwen's markers and chat template."""
    is_qwen = cut == "qwen-2"
    special = QWEN_TOKENS if is_qwen else LLAMA_TOKENS
    # Llama 3's takes a word that is a token as it is, whatever its merges would make of it.
    tokenizer = Tokenizer(models.BPE(ignore_merges=cut == "llama-3"))
    if is_qwen:
        tokenizer.normalizer = normalizers.NFC()
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut == "gpt-2")
    tokenizer.pre_tokenizer = (
        bytewise
        if cut == "gpt-2"
        else pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(PIECES[cut]), "isolated"), bytewise]
        )
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    if is_qwen:
        tokenizer.add_tokens(
            [AddedToken(token, special=False, normalized=False) for token in QWEN_ADDED]
        )
    elif cut == "llama-3":
        begin = special[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, 0)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None if is_qwen else special[0],
        eos_token="<|im_end|>" if is_qwen else "<|eot_id|>",
    )
    fast.chat_template = QWEN_TEMPLATE if is_qwen else LLAMA3_TEMPLATE
    return fast


def make_llama_model(directory: Path, kind: str, *, seed: int = 0) -> Path:
    """Write a model of some 150,000 parameters; returns its folder.

    It is far from uniform in its attention and its predictions, and its biases and norms do
    something: what is left out or turned around shows.
    """
    made = KINDS[kind]
    tokenizer = make_tokenizer(made.cut)
    tokenizer.save_pretrained(directory)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer) + made.num_padded,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    config = getattr(transformers, f"{made.class_prefix}Config")(**{**shape, **made.settings})
    model = getattr(transformers, f"{made.class_prefix}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return directory
