"""A model with the adapter merged into its weights, in the layout that the base model lies in.

Merged by PEFT's default merge, which adds the update in float32 and rounds once; `safe_merge`
rounds twice. A tied unembedding that the adapter changes gets its own copy first: merging into the
shared matrix would change the input embedding as well.
"""

from __future__ import annotations

import errno
import json
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from errors import ExportError, first_of
from exports.peft_folder import CONFIG as ADAPTER_CONFIG
from exports.peft_folder import read_adapter
from loop.planning.models import model_config
from storage.folders import write_plain

DTYPES = ("float32", "bfloat16", "float16")
IN_FILES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
SHARD = "5GB"
METHOD = "PEFT's default merge, which adds the update in float32 and rounds once"
NUM_NAMED = 3  # of tensors that do not fit


class Merge(NamedTuple):
    """What was merged, for export.json and the card."""

    dtype: str
    is_untied: bool  # by this merge
    notes: tuple[str, ...]


def own_dtype(base_dir: Path) -> str:
    """What a base model is loaded in by itself: what its config.json says, or its weights have,
    whichever is wider. Raises `ExportError` as `weights_dtype` does."""
    of_weights = weights_dtype(base_dir)
    config = model_config(base_dir, "base_model")
    inner = config.get("text_config")
    named = [
        one.get(key)
        for one in (config, inner if isinstance(inner, dict) else {})
        for key in ("dtype", "torch_dtype")
    ]
    said = next((name for name in named if name in DTYPES), of_weights)
    return of_weights if said == of_weights else "float32"


def weights_dtype(base_dir: Path) -> str:
    """The dtype of a base model's weights, float32 where there are several.

    Raises `ExportError` for weights that are quantized, or no safetensors.
    """
    from safetensors import SafetensorError, safe_open

    if "quantization_config" in model_config(base_dir, "base_model"):
        raise ExportError(
            f"{base_dir}: the base model is quantized, and nothing can be merged into such weights "
            "without rounding them anew. Use --format peft, or --base-model with the model that it "
            "was quantized from."
        )
    found: set[str] = set()
    try:
        for path in sorted(base_dir.glob("*.safetensors")):
            with safe_open(str(path), framework="pt") as file:
                found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{base_dir}: its weights cannot be read: {error}.") from None
    named = found & IN_FILES.keys()
    if not named:
        raise ExportError(
            f"{base_dir}: its weights are {', '.join(sorted(found)) or 'no safetensors'}, and only "
            f"{', '.join(DTYPES)} in safetensors are merged. Give another copy with --base-model."
        )
    return IN_FILES[named.pop()] if len(named) == 1 else "float32"


def merge(base_dir: Path, adapter_dir: Path, folder: Path, dtype: str) -> Merge:
    """Write config.json and the merged weights into a folder. Raises `ExportError`."""
    import torch

    # A base of the wanted dtype is added to in place; any other is summed in float32 first.
    of_base = weights_dtype(base_dir)
    model = load_base(base_dir, dtype if dtype == of_base else "float32")
    is_untied = _untie_if_needed(model, adapter_dir)
    merged = _with_adapter(model, adapter_dir).merge_and_unload()
    merged.to(dtype=getattr(torch, dtype))
    _save(merged, folder)
    write_plain(folder / "config.json", _config_of(base_dir, merged, dtype))
    notes = [f"merged by {METHOD}, in {dtype}"]
    if dtype != of_base:
        notes.append(f"the base model's weights are {of_base}")
    if is_untied:
        notes.append(
            "embedding and unembedding are one matrix in the base model; the merged unembedding is "
            "its own, with tie_word_embeddings false"
        )
    return Merge(dtype, is_untied, tuple(notes))


def load_base(base_dir: Path, dtype: str) -> Any:
    """The base model. Raises `ExportError` where files and architecture do not agree."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            base_dir,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"{base_dir}: the base model cannot be loaded: {first_line}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, told[what])):
            raise ExportError(
                f"{base_dir}: loading this base model for merging finds {what.replace('_', ' ')}: "
                f"{first_of(names, NUM_NAMED)}. The merged model would not be the one that was "
                "trained; use --format peft."
            )
    return model.eval().requires_grad_(False)


def unembedding_of(base_dir: Path) -> str:
    """What the base model's class calls its unembedding."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base_dir, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is head)


def _untie_if_needed(model: Any, adapter_dir: Path) -> bool:
    """Give a tied unembedding that the adapter changes its own copy; whether it was."""
    from local_tinker.lora import untie_unembedding

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return False
    names = {name for name, module in model.named_modules() if module in (head, embedding)}
    if not names & read_adapter(adapter_dir).modules:
        return False
    untie_unembedding(model)
    model.config.get_text_config().tie_word_embeddings = False
    return True


def _with_adapter(model: Any, adapter_dir: Path) -> Any:
    """The model with all of the adapter on it, and nothing of it that the files do not have."""
    from peft import PeftModel, get_peft_model_state_dict

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            adapted = PeftModel.from_pretrained(model, str(adapter_dir))
        except (ValueError, RuntimeError, KeyError) as error:
            raise ExportError(
                f"{adapter_dir / ADAPTER_CONFIG}: the adapter does not fit the base model: {error}"
            ) from error
    if said := [str(one.message) for one in warned if "adapter key" in str(one.message)]:
        raise ExportError(f"{adapter_dir}: the adapter does not fit the base model: {said[0]}")
    there = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if odd := sorted(there ^ set(read_adapter(adapter_dir).names)):
        raise ExportError(
            f"{adapter_dir}: the adapter does not fit the base model, which has other layers: "
            f"{first_of(odd, NUM_NAMED)}. Name the model that it was trained on with --base-model."
        )
    return adapted


def _save(model: Any, folder: Path) -> None:
    """Write weights, in safetensors alone and in the layout of the base model's own files."""
    from safetensors import SafetensorError
    from transformers import GenerationConfig

    # What the base model's says may be refused, and another is written in its place anyway.
    model.generation_config = GenerationConfig()
    try:
        model.save_pretrained(folder, max_shard_size=SHARD)
    except SafetensorError as error:
        raise OSError(_errno_in(str(error)), str(error), str(folder)) from error


def _errno_in(text: str) -> int:
    """Why the disk refused, as the writer of safetensors says it."""
    found = re.search(r"os error (\d+)", text)
    return errno.EIO if found is None else int(found[1])


def _config_of(base_dir: Path, model: Any, dtype: str) -> bytes:
    """The base model's own config.json, changed in what merging changes and nowhere else: older
    loaders do not know all that a newer transformers would write."""
    config = model_config(base_dir, "base_model")
    if type(model).__name__ not in config.get("architectures", []):
        config = json.loads(model.config.to_json_string(use_diff=False))
        config["architectures"] = [type(model).__name__]
    is_tied = bool(model.config.get_text_config().tie_word_embeddings)
    inner = [config[key] for key in ("text_config",) if isinstance(config.get(key), dict)]
    for one in (config, *inner):
        key = "torch_dtype" if "torch_dtype" in one else "dtype"
        if one is config or key in one:
            one[key] = dtype
        if not is_tied and (one is config or "tie_word_embeddings" in one):
            one["tie_word_embeddings"] = False
    return (json.dumps(config, indent=2) + "\n").encode()
