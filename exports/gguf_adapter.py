"""A LoRA adapter as a GGUF file, to be laid on the GGUF file of its base model.

llama.cpp adds `alpha / rank * B A` to a weight. A file without an alpha it takes at scale 1, and
a module that is not in the file it does not miss: both are seen to here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import ExportError
from exports.gguf_model import need_gguf, new_writer
from exports.gguf_shape import Shape, read_shape
from exports.gguf_weights import HEAD, Weights, open_weights, turn_rows, wanted_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
INSTEAD = (
    "Export the checkpoint with --format gguf, which holds the merged weights, or --format peft; "
    "nothing was written."
)
# What of PEFT's settings changes nothing in the numbers, is read below, or is said by the tensors.
HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
}
# Begun from these, the base's weights are its own; other ways of beginning change them as well.
PLAIN_STARTS = (True, False, "gaussian")


@dataclass(frozen=True)
class GgufAdapter:
    """What was written. With `needs_own_head` it fits only a base file written with `own_head`:
    the base ties its head to the embedding, and the adapter changes the head alone."""

    rank: int
    alpha: float  # scale * rank
    num_tensors: int
    needs_own_head: bool


def write_gguf_adapter(adapter_dir: Path, base_dir: Path, out: Path) -> GgufAdapter:
    """Write a PEFT adapter as the file `out`.

    Raises `ExportError`, by name, for what llama.cpp's adapters cannot say, and `StorageError`.
    """
    need_gguf()
    shape = read_shape(base_dir)
    config = _read_config(adapter_dir)
    with open_weights([adapter_dir / WEIGHTS]) as weights:
        tensors = _tensors(adapter_dir, config, shape, weights)
        rank = int(config["r"])
        alpha = float(config["lora_alpha"]) * (rank**0.5 if config.get("use_rslora") else 1.0)
        with new_writer(out, shape.arch) as writer:
            writer.add_type("adapter")
            writer.add_string("adapter.type", "lora")
            writer.add_float32("adapter.lora.alpha", alpha)
            writer.add_name(adapter_dir.name)
            for name, (source, num_heads) in tensors.items():
                values = weights.read(source)
                writer.add_tensor(name, turn_rows(values, num_heads) if num_heads else values)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
    changes_head = any(source.startswith(PREFIX + "lm_head.") for source, _ in tensors.values())
    return GgufAdapter(rank, alpha, len(tensors), shape.is_tied and changes_head)


def _refused(adapter_dir: Path, what: str) -> ExportError:
    return ExportError(f"{adapter_dir}: no GGUF adapter is written of {what}. {INSTEAD}")


def _read_config(adapter_dir: Path) -> dict[str, Any]:
    path = adapter_dir / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: cannot be read: {error}. Nothing was written.") from error
    for what in _refusals(config):
        raise _refused(adapter_dir, what)
    return config


def _refusals(config: Any) -> Iterator[str]:
    """What of an adapter's settings a file of llama.cpp cannot say."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        yield "an adapter that is not LoRA"
        return
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        yield f"an adapter of rank {rank!r} and alpha {alpha!r}"
    elif not 0 < alpha < float("inf"):
        yield f"an adapter with alpha {alpha} (llama.cpp takes 0 for no alpha, and scales by 1)"
    for key, value in config.items():
        if key == "init_lora_weights":
            if value not in PLAIN_STARTS:
                yield f"an adapter begun by {value!r}, which changes the base's weights as well"
        elif key not in HARMLESS and value and value not in ("none", {}):
            yield f"an adapter with {key} = {json.dumps(value)[:200]}"


def _tensors(
    adapter_dir: Path, config: dict[str, Any], shape: Shape, weights: Weights
) -> dict[str, tuple[str, int]]:
    """By llama.cpp's name each tensor's own name, and the heads to turn its rows for."""
    known = {
        wanted.parts[0].removesuffix(".weight"): wanted
        for wanted in wanted_tensors(shape, has_head=True)
        if len(wanted.parts) == 1 and _is_matrix(wanted.parts[0])
    }
    found: dict[str, tuple[str, int]] = {}
    modules: set[str] = set()
    for source in sorted(weights.names()):
        module, _, half = source.removeprefix(PREFIX).partition(".lora_")
        if not source.startswith(PREFIX) or module not in known or half not in HALVES:
            raise _refused(
                adapter_dir,
                f"an adapter with the tensor {source} (proven are LoRA's A and B of "
                f"the linear layers of {shape.arch} and of its head)",
            )
        rank = weights.shape(source)[0 if half == "A.weight" else 1]
        if rank != config["r"]:
            raise _refused(
                adapter_dir,
                f"an adapter whose ranks differ ({source} has {rank}, {CONFIG} says {config['r']})",
            )
        wanted = known[module]
        is_b = half == "B.weight"
        found[f"{wanted.name}.{HALVES[half]}"] = (source, wanted.num_heads if is_b else 0)
        modules.add(module)
    _check_complete(adapter_dir, config, modules, found)
    return found


HALVES = {"A.weight": "lora_a", "B.weight": "lora_b"}


def _is_matrix(name: str) -> bool:
    return name == HEAD or name.endswith("_proj.weight")


def _check_complete(
    adapter_dir: Path, config: dict[str, Any], modules: set[str], found: dict[str, Any]
) -> None:
    if not modules:
        raise _refused(adapter_dir, f"{WEIGHTS} without a tensor")
    if len(found) != 2 * len(modules):
        raise _refused(adapter_dir, "an adapter that lacks the A or the B of a module")
    targets = config.get("target_modules")
    ends = tuple(f".{module}" for module in modules)
    for target in targets if isinstance(targets, list) else []:
        if not any(end.endswith(f".{target}") for end in ends):
            raise _refused(
                adapter_dir,
                f"an adapter whose {CONFIG} names {target}, of which {WEIGHTS} has no tensor",
            )
