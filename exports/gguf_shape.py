"""What of a model's config llama.cpp has to be told, and what it would read otherwise.

An architecture stands here where its GGUF file was held against transformers, log-probability by
log-probability; all others are refused by name, and so is every setting that llama.cpp ignores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from errors import ExportError

INSTEAD = (
    "Export it with --format merged or --format peft, for transformers and vLLM, instead; nothing "
    "was written."
)


@dataclass(frozen=True)
class Family:
    """Of one class of transformers: llama.cpp's name, and what sets its weights apart."""

    arch: str
    permutes: bool = False  # llama.cpp turns pairs of neighbours, transformers of halves
    norms_heads: bool = False  # q_norm and k_norm


FAMILIES = {
    "LlamaForCausalLM": Family("llama", permutes=True),
    "MistralForCausalLM": Family("llama", permutes=True),
    "Qwen2ForCausalLM": Family("qwen2"),
    "Qwen3ForCausalLM": Family("qwen3", norms_heads=True),
    "Qwen3MoeForCausalLM": Family("qwen3moe", norms_heads=True),
}


@dataclass(frozen=True)
class Rope:
    """How positions are turned. `factors` divide the frequencies, where they are no plain scale."""

    theta: float
    kind: Literal["default", "linear", "yarn", "llama3"] = "default"
    factor: float = 1.0
    original_context: int = 0
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class Shape:
    """A model's shape, in the words of its config.json."""

    arch: str
    permutes: bool
    norms_heads: bool
    is_tied: bool
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context: int
    rms_norm_eps: float
    rope: Rope
    biased: frozenset[str]  # which of q, k, v, o have a bias
    num_experts: int = 0
    num_experts_used: int = 0
    expert_size: int = 0


def read_shape(model_dir: Path) -> Shape:
    """Read a model's config as transformers does. Raises `ExportError` naming what is refused."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ExportError(
            f"{model_dir}: config.json cannot be read as a model's: {error}. Nothing was written."
        ) from error
    for what in _refusals(config):
        raise ExportError(f"{model_dir}: no GGUF file is written of a model with {what}. {INSTEAD}")
    family = FAMILIES[config.architectures[0]]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = Shape(
        arch=family.arch,
        permutes=family.permutes,
        norms_heads=family.norms_heads,
        is_tied=bool(config.tie_word_embeddings),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        context=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope=_rope(config, head_dim),
        biased=_biased(family.arch, config),
    )
    if family.arch != "qwen3moe":
        return shape
    return replace(
        shape,
        num_experts=config.num_experts,
        num_experts_used=config.num_experts_per_tok,
        expert_size=config.moe_intermediate_size,
    )


def _biased(arch: str, config: Any) -> frozenset[str]:
    if arch == "qwen2":  # always, no setting says so
        return frozenset("qkv")
    return frozenset("qkvo" if getattr(config, "attention_bias", False) else "")


def _refusals(config: Any) -> Iterator[str]:
    """What llama.cpp would read otherwise or not at all, in words that follow "a model with"."""
    classes = list(config.architectures or [])
    if len(classes) != 1 or classes[0] not in FAMILIES:
        yield (
            f"the architecture {' and '.join(classes) or 'not named'} (proven are "
            f"{', '.join(FAMILIES)})"
        )
        return
    arch = FAMILIES[classes[0]].arch
    if getattr(config, "quantization_config", None):
        yield "quantized weights (export the model that they were made of)"
    if config.hidden_act not in ("silu", "swish"):
        yield f"the activation {config.hidden_act} (llama.cpp takes silu for {arch})"
    if getattr(config, "mlp_bias", False):
        yield "mlp_bias, which was not proven"
    if arch != "llama" and getattr(config, "attention_bias", False):
        yield f"attention_bias, which llama.cpp does not read of {arch}"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim % 2:
        yield f"heads of the odd size {head_dim}"
    yield from _windows(config)
    if arch == "qwen3moe":
        if config.decoder_sparse_step != 1 or config.mlp_only_layers:
            yield "dense layers among its mixtures of experts, which was not proven"
        if not config.norm_topk_prob:
            yield "norm_topk_prob: false (llama.cpp always norms the experts' shares)"
    yield from _rope_refusals(config, arch)


def _windows(config: Any) -> Iterator[str]:
    """A window as wide as the context leaves nothing out."""
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", window is not None) and window is not None:
        if window < config.max_position_embeddings:
            yield (
                f"a sliding window of {window} in a context of {config.max_position_embeddings} "
                "(llama.cpp looks at all of it)"
            )
        return
    kinds = {kind for kind in getattr(config, "layer_types", None) or [] if kind}
    if kinds - {"full_attention"}:
        yield f"layers of the kinds {', '.join(sorted(kinds))}"


ROPE_KEYS = {  # what is written, and what stands for what is left out
    "default": {"rope_type", "rope_theta"},
    "linear": {"rope_type", "rope_theta", "factor"},
    "yarn": {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"},
    "llama3": {
        "rope_type",
        "rope_theta",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
}


def _rope_refusals(config: Any, arch: str) -> Iterator[str]:
    rope = config.rope_parameters or {}
    kind = rope.get("rope_type", "default")
    if kind not in ROPE_KEYS:
        yield f"the rope scaling {kind!r} (proven are {', '.join(ROPE_KEYS)})"
        return
    if kind == "llama3" and arch != "llama":
        yield f"the rope scaling 'llama3', whose factors llama.cpp does not read of {arch}"
    if others := {key for key, value in rope.items() if value is not None} - ROPE_KEYS[kind]:
        yield f"the rope settings {', '.join(sorted(others))} beside {kind!r}, not proven"


def _rope(config: Any, head_dim: int) -> Rope:
    rope = config.rope_parameters or {}
    kind = rope.get("rope_type", "default")
    theta = float(rope.get("rope_theta", 10000.0))
    if kind == "default":
        return Rope(theta)
    factor = float(rope["factor"])
    original = int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    if kind != "llama3":
        return Rope(theta, kind, factor, original)
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factors = tuple(
        _llama3_factor(2 * math.pi * theta ** (2 * i / head_dim), factor, (low, high), original)
        for i in range(head_dim // 2)
    )
    return Rope(theta, "llama3", factor, original, factors)


def _llama3_factor(
    wavelength: float, factor: float, low_and_high: tuple[float, float], original: int
) -> float:
    """By what Llama 3.1 divides a frequency: none of the short waves, all of the long ones."""
    low, high = low_and_high
    if wavelength < original / high:
        return 1.0
    if wavelength > original / low:
        return factor
    smooth = (original / wavelength - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)
