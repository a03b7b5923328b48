"""Tiny randomly initialised model directories, as a user's own model would look on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LLAMA_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Of Qwen3's tokenizer: added, so that they are one token, but not special.
QWEN_ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
END_TOKENS = {"<|eot_id|>", "<|im_end|>"}

# Chat templates of the published shape, written for these tests.
LLAMA3_TEMPLATE = """\
{%- for message in messages %}
{{- bos_token if loop.first else "" }}
{{- "<|start_header_id|>" ~ message.role ~ "<|end_header_id|>\n\n" }}
{{- message.content | trim ~ "<|eot_id|>" }}
{%- endfor %}
{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" if add_generation_prompt }}"""
# With the calls in `<tool_call>`, as Qwen writes them.
CALLS = """\
{%- for call in message.tool_calls or [] %}
{{- "\n" if message.content or not loop.first }}
{{- '<tool_call>\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
{{- call.function.arguments | tojson ~ "}\n</tool_call>" }}
{%- endfor %}
"""
# Qwen3: the answer to the last question has a block of reasoning, empty or not; earlier ones have
# none.
QWEN3_TEMPLATE = """\
{%- set last = namespace(question=messages | length) %}
{%- for message in messages if message.role == "user" %}
{%- set last.question = messages.index(message) %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content.split("</think>")[-1].lstrip("\n") %}
{{- "<|im_start|>" ~ message.role ~ "\n" }}
{%- if message.role != "assistant" %}
{{- message.content }}
{%- elif loop.index0 > last.question and loop.last %}
{{- "<think>\n" ~ (message.reasoning_content or "") ~ "\n</think>\n\n" ~ content }}
{%- else %}
{{- content }}
{%- endif %}
CALLS{{- "<|im_end|>\n" }}
{%- endfor %}
{{- "<|im_start|>assistant\n" if add_generation_prompt }}""".replace("CALLS", CALLS)


class Family(NamedTuple):
    """`FooConfig` and `FooForCausalLM` of transformers, with what the shared shape leaves open."""

    class_prefix: str
    settings: dict[str, Any]
    special_tokens: list[str] = QWEN_TOKENS
    added_tokens: list[str] = QWEN_ADDED
    chat_template: str = QWEN3_TEMPLATE


# Windows and original contexts are small, so that the tests' sequences are longer than they are.
FAMILIES = {
    "llama": Family("Llama", {}, LLAMA_TOKENS, [], LLAMA3_TEMPLATE),
    "mistral": Family("Mistral", {"sliding_window": 6}, LLAMA_TOKENS, [], LLAMA3_TEMPLATE),
    "qwen2": Family("Qwen2", {}),
    "qwen3": Family("Qwen3", {"head_dim": 8}),
    "gemma2": Family(
        "Gemma2",
        {
            "head_dim": 8,
            "sliding_window": 6,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 2.0,
            "pad_token_id": 0,
        },
    ),
    "gemma3": Family(
        "Gemma3",
        {
            "head_dim": 8,
            "sliding_window": 6,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "pad_token_id": 0,
        },
    ),
    "phi": Family("Phi", {}),
    "phi3": Family("Phi3", {"pad_token_id": 0}),
    "qwen3_moe": Family(
        "Qwen3Moe",
        {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "mixtral": Family("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": Family(
        "GptOss",
        {
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}


def make_model_dir(
    directory: Path,
    family: str,
    *,
    tied: bool = False,
    seed: int = 0,
    is_lively: bool = False,
    context: int = 512,
) -> Path:
    """Write a model of some 20,000 parameters with a byte-level tokenizer; returns its folder.

    A lively model is far from uniform in its attention and its predictions, and its biases and
    norms do something; left to transformers, a model of this size hardly looks at its input.
    """
    class_prefix, settings, special, added, chat_template = FAMILIES[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(
        ["a small text about nothing in particular, with few words"], trainer
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    (end,) = END_TOKENS.intersection(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=end)
    fast.chat_template = chat_template
    fast.save_pretrained(directory)
    shape: dict[str, Any] = {
        "vocab_size": len(fast),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "bos_token_id": fast.bos_token_id,
        "eos_token_id": fast.eos_token_id,
    }
    if is_lively:
        shape["initializer_range"] = 0.2
    torch.manual_seed(seed)
    config_class = "Gemma3TextConfig" if family == "gemma3" else f"{class_prefix}Config"
    config = getattr(transformers, config_class)(**{**shape, **settings})
    model = getattr(transformers, f"{class_prefix}ForCausalLM")(config)
    if is_lively:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return directory
