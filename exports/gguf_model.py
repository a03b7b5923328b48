"""A model directory as one GGUF file, written with the `gguf` package.

f32 holds the weights as they are; f16 rounds them; q8_0 holds blocks of 32 as 8-bit numbers with a
scale. In the last two, vectors, the routers of experts, and what has rows of no whole number of
blocks stay f32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from errors import ConfigError, ExportError
from exports.gguf_shape import Shape, read_shape
from exports.gguf_tokenizer import GgufTokens, add_tokens, read_tokens
from exports.gguf_weights import (
    EMBEDDING,
    HEAD,
    Wanted,
    Weights,
    check_complete,
    open_weights,
    turn_rows,
    wanted_tensors,
    weight_files,
)
from storage.files import storage_error

Quantization = Literal["f32", "f16", "q8_0"]
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}  # llama.cpp's llama_ftype
BLOCK = 32  # values of q8_0 that share a scale
LARGEST_HALF = 65504.0
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class About:
    """What the file says of itself, and which tokens end an answer (without any: the model's).

    With `own_head` a tied model is given a head of its own all the same, equal to the embedding: an
    adapter that changes the head needs one to be laid on.
    """

    name: str = ""
    license: str = ""
    source: str = ""
    stop_ids: tuple[int, ...] = ()
    own_head: bool = False


def need_gguf() -> None:
    """Raise `ConfigError` where what writes and loads GGUF files is not installed."""
    for module in ("gguf", "xllamacpp"):
        try:
            __import__(module)
        except ImportError as error:
            raise ConfigError(
                f"GGUF files need the package {module}, which cannot be imported ({error}). "
                "Install it with: .venv/bin/python -m pip install -r requirements-gguf.txt"
            ) from error


def write_gguf(
    model_dir: Path,
    out: Path,
    quantization: Quantization,
    chat_template: str,
    about: About | None = None,
) -> tuple[str, ...]:
    """Write a model directory as the file `out`; returns sentences on what is read otherwise.

    Raises `ExportError` for a model or a tokenizer that llama.cpp would read otherwise, and
    `StorageError`; what is left of `out` then is no GGUF file and is removed.
    """
    need_gguf()
    about = about or About(name=model_dir.name)
    if not chat_template.strip():
        raise ExportError(
            f"{model_dir}: there is no chat template to write, and without one llama.cpp takes "
            "another model's. Nothing was written."
        )
    shape = read_shape(model_dir)
    tokens = read_tokens(model_dir, shape.vocab_size, chat_template, about.stop_ids)
    with open_weights(weight_files(model_dir)) as weights, new_writer(out, shape.arch) as writer:
        has_head = check_complete(shape, weights, model_dir)
        _describe(writer, shape, quantization, about)
        add_tokens(writer, tokens, chat_template)
        writes_head = not shape.is_tied or about.own_head
        plan = wanted_tensors(shape, has_head=writes_head)
        sources = {HEAD: HEAD if has_head else EMBEDDING}
        plain = _write(writer, _tensors(shape, plan, weights, sources), quantization, model_dir)
    return tuple(_limits(tokens, plain, quantization))


def _limits(tokens: GgufTokens, plain: int, quantization: Quantization) -> Iterator[str]:
    yield from tokens.limits
    if plain:
        yield (
            f"{plain} matrices have rows that are no multiple of {BLOCK} long and stay f32 in "
            f"{quantization}."
        )


@contextlib.contextmanager
def new_writer(out: Path, arch: str) -> Iterator[Any]:
    """A writer of the file, which is gone again unless all of it was written."""
    from gguf import GGUFWriter  # pyright: ignore[reportMissingImports]

    writer = GGUFWriter(None, arch)
    writer.path = out
    is_whole = False
    try:
        yield writer
        writer.close()
        is_whole = True
    except OSError as error:
        raise storage_error(out, error) from error
    finally:
        if not is_whole:
            with contextlib.suppress(OSError):
                writer.close()
            with contextlib.suppress(OSError):
                out.unlink()


def _describe(writer: Any, shape: Shape, quantization: Quantization, about: About) -> None:
    from gguf import GGML_QUANT_VERSION  # pyright: ignore[reportMissingImports]

    writer.add_type("model")
    for text, add in (
        (about.name, writer.add_name),
        (about.license, writer.add_license),
        (about.source, writer.add_source_url),
    ):
        if text:
            add(text.encode(errors="replace").decode())  # a folder's name may be no text
    writer.add_file_type(FILE_TYPES[quantization])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    if shape.num_experts:
        writer.add_expert_count(shape.num_experts)
        writer.add_expert_used_count(shape.num_experts_used)
        writer.add_expert_feed_forward_length(shape.expert_size)
    _describe_rope(writer, shape)


def _describe_rope(writer: Any, shape: Shape) -> None:
    from gguf import RopeScalingType  # pyright: ignore[reportMissingImports]

    rope = shape.rope
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(rope.theta)
    if rope.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope.kind))
        writer.add_rope_scaling_factor(rope.factor)
    if rope.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)


def _tensors(
    shape: Shape, plan: Sequence[Wanted], weights: Weights, sources: dict[str, str]
) -> list[tuple[str, tuple[int, ...], Any]]:
    """Name, shape and how to get each tensor of the file."""
    import numpy as np

    def reader(wanted: Wanted) -> Any:
        parts = [weights.read(sources.get(part, part)) for part in wanted.parts]
        if wanted.num_heads:
            parts = [turn_rows(part, wanted.num_heads) for part in parts]
        return parts[0] if len(parts) == 1 else np.stack(parts)

    found: list[tuple[str, tuple[int, ...], Any]] = []
    if shape.rope.factors:
        factors = np.array(shape.rope.factors, dtype=np.float32)
        found.append((ROPE_FACTORS, factors.shape, lambda: factors))
    for wanted in plan:
        size = weights.shape(sources.get(wanted.parts[0], wanted.parts[0]))
        if len(wanted.parts) > 1:
            size = (len(wanted.parts), *size)
        found.append((wanted.name, size, lambda wanted=wanted: reader(wanted)))
    return found


def _write(
    writer: Any,
    tensors: Sequence[tuple[str, tuple[int, ...], Any]],
    quantization: Quantization,
    model_dir: Path,
) -> int:
    """Write the file, one tensor in memory at a time; returns how many matrices stay f32."""
    import numpy as np
    from gguf import GGMLQuantizationType, quants  # pyright: ignore[reportMissingImports]
    from gguf.quants import quant_shape_to_byte_shape  # pyright: ignore[reportMissingImports]

    kinds: dict[str, GGMLQuantizationType] = {}
    plain = 0
    for name, size, _ in tensors:
        kind = GGMLQuantizationType[quantization.upper()]
        if len(size) == 1 or name.endswith("ffn_gate_inp.weight"):
            kind = GGMLQuantizationType.F32
        elif quantization == "q8_0" and size[-1] % BLOCK:
            kind = GGMLQuantizationType.F32
            plain += 1
        kinds[name] = kind
        raw = quant_shape_to_byte_shape(size, kind)
        writer.add_tensor_info(name, raw, np.dtype(np.uint8), int(np.prod(raw)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, _, read in tensors:
        values = read()
        largest = float(np.abs(values).max(initial=0.0))
        # Of q8_0 the scale is 16 bits wide.
        room = {"f16": LARGEST_HALF, "q8_0": LARGEST_HALF * 127}.get(kinds[name].name.lower())
        if room is not None and largest > room:
            raise ExportError(
                f"{model_dir}: {name} holds {largest:g}, and {quantization} goes up to {room:g}. "
                "Write it with the quantization f32; nothing was written."
            )
        writer.write_tensor_data(quants.quantize(values, kinds[name]))
    return plain
