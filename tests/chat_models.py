"""Tokenizers with the marker tokens and chat templates of published models, written for the tests.

Each template has the shape of the one that its model is published with: what stands before the
first turn, what encloses a turn, what the prompt ends with, what happens to earlier answers. The
vocabularies are a few hundred pieces; they are cut as Llama 3's and Qwen's are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from model_dirs import CALLS, LLAMA3_TEMPLATE, LLAMA_TOKENS, QWEN3_TEMPLATE, QWEN_ADDED, QWEN_TOKENS

PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = ["user\n\nassistant\n\nsystem\n\nAnswer in one word.\n\nA colour?\n\n", "a ring\n", "it, no"]


class Shape(NamedTuple):
    """A published model's tokens and chat template."""

    template: str | None
    special: list[str]
    added: list[str]
    bos: str | None
    eos: str


def make_tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=shape.special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    added = [AddedToken(token, special=False, normalized=False) for token in shape.added]
    tokenizer.add_tokens(added)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=shape.bos, eos_token=shape.eos
    )
    fast.chat_template = shape.template
    return fast


def make_tokenizer_dir(directory: Path, shape: Shape) -> Path:
    make_tokenizer(shape).save_pretrained(directory)
    return directory


def dated(template: str, opening: str) -> str:
    """A template with something before the first turn; `turns` are the messages after it."""
    return opening + re.sub(r"\bmessages\b", "turns", template)


# The system text, if any, goes into a turn that is always there.
LLAMA31_TEMPLATE = dated(
    LLAMA3_TEMPLATE.replace('{{- bos_token if loop.first else "" }}\n', ""),
    """\
{%- set has_system = messages[0].role == "system" %}
{%- set turns = messages[1:] if has_system else messages %}
{{- bos_token ~ "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\nToday Date: " ~ strftime_now("%d %b %Y") ~ "\n\n" }}
{{- (messages[0].content | trim if has_system else "") ~ "<|eot_id|>" }}
""",
)
CHATML_TEMPLATE = """\
{%- for message in messages %}
{{- "<|im_start|>" ~ message.role ~ "\n" ~ message.content }}
CALLS{{- "<|im_end|>\n" }}
{%- endfor %}
{{- "<|im_start|>assistant\n" if add_generation_prompt }}""".replace("CALLS", CALLS)
QWEN25_TEMPLATE = (
    """\
{%- if messages[0].role != "system" %}
{{- "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant." }}
{{- "<|im_end|>\n" }}
{%- endif %}
"""
    + CHATML_TEMPLATE
)
R1_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == "system" %}
{{- message.content }}
{%- elif message.role == "user" %}
{{- "<\uff5cUser\uff5c>" ~ message.content }}
{%- else %}
{{- "<\uff5cAssistant\uff5c>" ~ message.content.split("</think>")[-1] ~ eos_token }}
{%- endif %}
{%- endfor %}
{{- "<\uff5cAssistant\uff5c><think>\n" if add_generation_prompt }}"""
# With calls whose arguments it takes as text.
DEEPSEEK31_TEMPLATE = (
    R1_TEMPLATE.replace(
        "~ eos_token }}",
        """}}
{%- for call in message.tool_calls or [] %}
{{- "<\uff5ctool\u2581calls\u2581begin\uff5c>" if loop.first }}
{{- "<\uff5ctool\u2581call\u2581begin\uff5c>" + call.function.name }}
{{- "<\uff5ctool\u2581sep\uff5c>" }}
{{- call.function.arguments + "<\uff5ctool\u2581call\u2581end\uff5c>" }}
{{- "<\uff5ctool\u2581calls\u2581end\uff5c>" if loop.last }}
{%- endfor %}
{{- eos_token }}""",
    )
    .replace('<\uff5cAssistant\uff5c>" ~', '<\uff5cAssistant\uff5c></think>" ~')
    .replace("<think>\n", "</think>")
)
# Qwen3.5: content is trimmed, the prompt opens the block, and calls are in XML.
QWEN35_TEMPLATE = (
    QWEN3_TEMPLATE.replace(CALLS, "")
    .replace("assistant\n", "assistant\n<think>\n")
    .replace('.split("</think>")[-1].lstrip("\n")', " | trim")
    .replace("{{- message.content }}", "{{- message.content | trim }}")
    .replace(
        '{{- "<|im_end|>\n" }}',
        """\
{%- for call in message.tool_calls or [] %}
{{- ("\n\n" if loop.first else "\n") ~ "<tool_call>\n<function=" ~ call.function.name ~ ">\n" }}
{%- for name, value in call.function.arguments.items() %}
{{- "<parameter=" ~ name ~ ">\n" ~ value ~ "\n</parameter>\n" }}
{%- endfor %}
{{- "</function>\n</tool_call>" }}
{%- endfor %}
{{- "<|im_end|>\n" }}""",
    )
)
GEMMA_TEMPLATE = """\
{{- bos_token }}
{%- if messages[0].role == "system" %}{{ raise_exception("System role not supported") }}{% endif %}
{%- for message in messages %}
{%- set role = "model" if message.role == "assistant" else message.role %}
{{- "<start_of_turn>" ~ role ~ "\n" ~ (message.content | trim) ~ "<end_of_turn>\n" }}
{%- endfor %}
{{- "<start_of_turn>model\n" if add_generation_prompt }}"""
ROLE_COLON_TEMPLATE = """\
{%- for message in messages %}
{{- (bos_token if loop.first else "") ~ (message.role | capitalize) }}: {{ message.content }}

{% endfor %}
{{- "Assistant:" if add_generation_prompt }}"""
HARMONY_TEMPLATE = """\
{{- "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n" }}
{{- "Knowledge cutoff: 2024-06\nCurrent date: " ~ strftime_now("%Y-%m-%d") ~ "\n\n" }}
{{- "Reasoning: " ~ (reasoning_effort or "medium") ~ "\n\n# Valid channels: analysis, " }}
{{- "commentary, final. Channel must be included for every message.<|end|>" }}
{%- for message in messages %}
{%- if message.role == "system" %}
{{- "<|start|>developer<|message|># Instructions\n\n" ~ message.content ~ "\n\n<|end|>" }}
{%- elif message.role == "user" %}
{{- "<|start|>user<|message|>" ~ message.content ~ "<|end|>" }}
{%- else %}
{{- "<|start|>assistant<|channel|>final<|message|>" ~ message.content }}
{{- "<|return|>" if loop.last else "<|end|>" }}
{%- endif %}
{%- endfor %}
{{- "<|start|>assistant" if add_generation_prompt }}"""
KIMI_TEMPLATE = """\
{%- if messages[0].role != "system" %}
{{- "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI." }}
{{- "<|im_end|>" }}
{%- endif %}
{%- for message in messages %}
{{- "<|im_" ~ message.role ~ "|>" ~ message.role ~ "<|im_middle|>" }}
{{- "<think></think>" if message.role == "assistant" }}
{{- message.content ~ "<|im_end|>" }}
{%- endfor %}
{{- "<|im_assistant|>assistant<|im_middle|>" if add_generation_prompt }}"""

KIMI25_TEMPLATE = KIMI_TEMPLATE.replace('assistant<|im_middle|>"', 'assistant<|im_middle|><think>"')
# A turn ends where the next one begins; reasoning stays where it is.
GLM_TEMPLATE = """\
{{- "[gMASK]<sop><|system|>Reasoning Effort: Max" }}
{%- for message in messages %}
{{- "<|" ~ message.role ~ "|>" }}
{%- if message.role == "assistant" %}
{{- "<think>" ~ (message.reasoning_content or "") ~ "</think>" ~ (message.content | trim) }}
{%- for call in message.tool_calls or [] %}
{{- "<tool_call>" ~ call.function.name }}
{%- for name, value in call.function.arguments.items() %}
{{- "<arg_key>" ~ name ~ "</arg_key><arg_value>" ~ value ~ "</arg_value>" }}
{%- endfor %}
{{- "</tool_call>" }}
{%- endfor %}
{%- else %}
{{- message.content }}
{%- endif %}
{%- endfor %}
{{- "<|assistant|><think>" if add_generation_prompt }}"""
# There is always a system turn, and an answer always has a block, which in Ultra ends in one line.
NEMOTRON_TEMPLATE = """\
{%- if messages[0].role != "system" %}
{{- "<|im_start|>system\n<|im_end|>\n" }}
{%- endif %}
{%- for message in messages %}
{{- "<|im_start|>" ~ message.role ~ "\n" }}
{%- if message.role == "assistant" and message.reasoning_content and loop.last %}
{{- "<think>\n" ~ message.reasoning_content ~ "\n</think>\n" }}
{%- elif message.role == "assistant" and message.reasoning_content %}
{{- "<think></think>\n" }}
{%- elif message.role == "assistant" %}
{{- "<think></think>" }}
{%- endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- "\n<tool_call>\n<function=" ~ call.function.name ~ ">\n" }}
{%- for name, value in call.function.arguments.items() %}
{{- "<parameter=" ~ name ~ ">\n" ~ value ~ "\n</parameter>\n" }}
{%- endfor %}
{{- "</function>\n</tool_call>\n" }}
{%- endfor %}
{{- "<|im_end|>\n" }}
{%- endfor %}
{{- "<|im_start|>assistant\n<think>\n" if add_generation_prompt }}"""

CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
DEEPSEEK_TOKENS = [
    f"<\uff5c{name}\uff5c>"
    for name in ("begin\u2581of\u2581sentence", "end\u2581of\u2581sentence", "User", "Assistant")
]
HARMONY_TOKENS = [
    f"<|{name}|>" for name in ("start", "channel", "message", "end", "return", "call", "constrain")
]
KIMI_TOKENS = [f"<|im_{name}|>" for name in ("system", "user", "assistant", "middle", "end")]
GLM_ROLES = [f"<|{name}|>" for name in ("system", "user", "assistant", "observation")]
GLM_TOKENS = ["<|endoftext|>", "[gMASK]", "<sop>", *GLM_ROLES]
GEMMA_TOKENS = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
THINK = ["<think>", "</think>"]


def _qwen(template: str | None, added: list[str] = QWEN_ADDED) -> Shape:
    return Shape(template, QWEN_TOKENS, added, None, "<|im_end|>")


def _llama(template: str | None) -> Shape:
    return Shape(template, LLAMA_TOKENS, [], "<|begin_of_text|>", "<|eot_id|>")


BOS, EOS = DEEPSEEK_TOKENS[:2]
SHAPES: dict[str, Shape] = {
    "Llama 3": _llama(LLAMA3_TEMPLATE),
    "Llama 3.1, 3.2, 3.3": _llama(LLAMA31_TEMPLATE),
    "Llama 3 without a template": _llama(None),
    "Qwen3": _qwen(QWEN3_TEMPLATE),
    "Qwen3-Instruct-2507": _qwen(CHATML_TEMPLATE),
    "Qwen3-Thinking-2507": _qwen(QWEN3_TEMPLATE.replace("assistant\n", "assistant\n<think>\n")),
    "Qwen3.5, 3.6": _qwen(QWEN35_TEMPLATE),
    "Qwen2.5": _qwen(QWEN25_TEMPLATE, ["<tool_call>", "</tool_call>"]),
    "Hermes 3 on Llama 3.1": Shape(
        "{{- bos_token }}\n" + CHATML_TEMPLATE,
        [*LLAMA_TOKENS, *CHATML_TOKENS],
        [],
        "<|begin_of_text|>",
        "<|im_end|>",
    ),
    "R1-Distill-Llama": Shape(R1_TEMPLATE, [*LLAMA_TOKENS, *DEEPSEEK_TOKENS], THINK, BOS, EOS),
    "DeepSeek-V3.1": Shape(DEEPSEEK31_TEMPLATE, DEEPSEEK_TOKENS, THINK, BOS, EOS),
    "gpt-oss": Shape(HARMONY_TEMPLATE, HARMONY_TOKENS, [], None, "<|return|>"),
    "Kimi-K2-Thinking": Shape(KIMI_TEMPLATE, KIMI_TOKENS, THINK, None, "<|im_end|>"),
    "Kimi-K2.5": Shape(KIMI25_TEMPLATE, KIMI_TOKENS, THINK, None, "<|im_end|>"),
    "GLM-5.3": Shape(GLM_TEMPLATE, GLM_TOKENS, THINK, None, "<|endoftext|>"),
    "Nemotron 3 Nano, Super": _qwen(NEMOTRON_TEMPLATE, THINK),
    "Nemotron 3 Ultra": _qwen(re.sub("\n?</think>\n", "</think>", NEMOTRON_TEMPLATE), THINK),
    "Gemma 2": Shape(GEMMA_TEMPLATE, GEMMA_TOKENS, [], "<bos>", "<eos>"),
    "a base model's `User:`, `Assistant:`": _llama(ROLE_COLON_TEMPLATE),
}
