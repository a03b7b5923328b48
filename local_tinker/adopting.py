"""An adapter that another program wrote, held against its base model and kept as a checkpoint.

Every tensor of its file is laid on a layer of the base model or refused by its name, and where its
config says which layers it has, none of them may be missing. What is kept is the same update: the
numbers in float32, which holds all that bfloat16 and float16 do, and alpha as the writer had it.
Runs on the compute thread, as all that touches a model.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load, save_file

from local_tinker import checkpoints, lora
from local_tinker.checkpoints import CheckpointInfo, Kind
from local_tinker.engine import Engine
from local_tinker.lora import LORA_ALPHA, AdaptedLayer, Layer, LoraShape
from local_tinker.peft_folders import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    FolderError,
    PeftFolder,
    refuse_slow_patterns,
)
from local_tinker.wire import UserError

NUM_NAMED = 3  # of layers that do not fit
MERGE = (
    "Merge the adapter into a copy of its base model with the program that wrote it, and give that "
    "as base_model"
)
OTHER_BASE = "Set base_model to the model that the adapter was trained on"


def adopt(
    engine: Engine, folder: PeftFolder, root: Path | None = None, kind: Kind = "sampler_weights"
) -> CheckpointInfo:
    """Hold an adapter against its base model, and keep it in a folder of checkpoints under
    `folder.path(kind)`, where one is given.

    Raises `FolderError` where it does not fit the engine's base model, or has changed since it was
    read, and `StorageError`.
    """
    tensors = _read_tensors(folder)
    shape = _shape_of_experts(engine, folder) if folder.has_experts else shape_of(engine, folder)
    _refuse_changed_matrices(engine.model, folder, tensors)
    kept = {
        name: tensor.float().contiguous()
        for name, tensor in tensors.items()
        if name not in folder.whole.values()
    }
    info = CheckpointInfo.of_shape(
        shape,
        base_model=engine.name,
        num_optimizer_steps=0,
        created_at=time.time(),
        expires_at=None,
        user_metadata={"adapter_of": folder.directory.name, "adapter_sha256": folder.digest},
    )

    if root is None:
        return info

    def write_files(directory: Path) -> None:
        save_file(kept, directory / WEIGHTS_FILE, metadata={"format": "pt"})
        lora.config_of(engine.model, engine.name, shape).save_pretrained(str(directory))

    target = checkpoints.folder(root, checkpoints.parse_path(folder.path(kind)))
    checkpoints.write(root, target, info, write_files, overwrite=True)
    engine.forget_sampler(target)
    return info


def _read_tensors(folder: PeftFolder) -> dict[str, torch.Tensor]:
    """The numbers, from the bytes that were read before."""
    file = folder.directory / WEIGHTS_FILE
    try:
        content = file.read_bytes()
    except OSError as error:
        raise FolderError(f"{file}: cannot be read: {error}.") from None
    if hashlib.sha256(content).hexdigest() != folder.sha256[WEIGHTS_FILE]:
        raise FolderError(f"{file}: was changed while it was read. Try again once it is whole.")
    tensors = load(content)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise FolderError(
                f"{file}: {name} has values that are no numbers. Use an earlier save of it."
            )
    return tensors


# --- which layers ---------------------------------------------------------------------------------


def shape_of(engine: Engine, folder: PeftFolder) -> LoraShape:
    """The layers of an adapter in a base model, each with its rank and alpha. Raises
    `FolderError`."""
    every = list(lora.layers_of(engine.model))
    linear = {layer.name: layer for layer in every if layer.parameter is None}
    _refuse_unknown(engine, folder, linear)
    refuse_slow_patterns(folder, linear)
    _refuse_other_than_said(folder, linear)
    flags = {linear[name].flag for name in folder.pairs}
    mlp = [name for name in folder.pairs if linear[name].flag == "train_mlp"]
    if mlp and any(layer.parameter for layer in every):
        raise FolderError(
            f"{folder.directory / WEIGHTS_FILE}: {_some(mlp)}: the MLP layers of {engine.name}, "
            "which has experts, are read of "
            "adapters that this service wrote alone; adapters of others on its attention are read. "
            f"{MERGE}."
        )
    adapted = tuple(_adapted(folder, linear[name]) for name in linear if name in folder.pairs)
    own = LoraShape(
        folder.rank, "train_attn" in flags, "train_mlp" in flags, "train_unembed" in flags
    )
    covered = {layer.name for layer in every if layer.flag in flags}
    is_own = covered == folder.pairs.keys() and all(
        (one.rank, one.alpha) == (own.rank, LORA_ALPHA) for one in adapted
    )
    return own if is_own else replace(own, layers=adapted)


def _adapted(folder: PeftFolder, layer: Layer) -> AdaptedLayer:
    """A layer's rank and alpha; both files have to agree on the rank."""
    config, pair = folder.config, folder.pairs[layer.name]
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank = ranks.get(get_pattern_key(list(ranks), layer.name), folder.rank)
    if rank != pair.rank:
        raise FolderError(
            f"{folder.directory / WEIGHTS_FILE}: layer {layer.name} is of rank {pair.rank}, and "
            f"{CONFIG_FILE} says {rank}: the scale, alpha / rank, is not known. Take both files "
            "from one save of the adapter."
        )
    alpha = alphas.get(get_pattern_key(list(alphas), layer.name), config["lora_alpha"])
    return AdaptedLayer(layer.name, rank, folder.alpha_at(rank, alpha))


def _refuse_unknown(engine: Engine, folder: PeftFolder, linear: dict[str, Layer]) -> None:
    """Raise `FolderError` for a layer that the base model does not have, or has in another size."""
    file, others = folder.directory / WEIGHTS_FILE, [n for n in folder.pairs if n not in linear]
    if others:
        raise FolderError(
            f"{file}: the base model {engine.name} has no layer {_some(others)} that LoRA is put "
            f"on here. {OTHER_BASE}."
        )
    for name, pair in folder.pairs.items():
        layer = linear[name]
        if (pair.num_inputs, pair.num_outputs) == (layer.num_inputs, layer.num_outputs):
            continue
        resized = ""
        if layer.flag == "train_unembed" and pair.num_inputs == layer.num_inputs:
            resized = (
                f", whose vocabulary was resized to {pair.num_outputs} tokens: a copy with the "
                "resized embedding and its tokenizer"
            )
        raise FolderError(
            f"{file}: layer {name} is made for {pair.num_inputs} inputs and {pair.num_outputs} "
            f"outputs, and has {layer.num_inputs} and {layer.num_outputs} in the base model "
            f"{engine.name}. {OTHER_BASE}{resized}."
        )


def _refuse_other_than_said(folder: PeftFolder, linear: dict[str, Layer]) -> None:
    """Raise `FolderError` where the config names layers that the tensors do not have, or the other
    way round. A config that names none, as SkyRL's, says nothing of them."""
    said = folder.config.get("target_modules")
    if said is None:
        return
    if said == "all-linear":
        named = {name for name, layer in linear.items() if layer.flag != "train_unembed"}
    else:
        keys = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
        narrowed: dict[str, Any] = {key: folder.config.get(key) for key in keys}
        try:
            config = LoraConfig(**narrowed)
        except (TypeError, ValueError) as error:
            raise FolderError(f"{folder.directory / CONFIG_FILE}: {error}") from None
        named = {name for name in linear if check_target_module_exists(config, name)}
    missing, more = named - folder.pairs.keys(), folder.pairs.keys() - named
    if missing or more:
        what = f"no tensors of {_some(missing)}" if missing else f"tensors of {_some(more)}"
        other = "names" if missing else "does not name"
        raise FolderError(
            f"{folder.directory / WEIGHTS_FILE}: there are {what}, which {CONFIG_FILE} {other} "
            "(target_modules and what narrows it). Take both files from one save of the adapter."
        )


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(sorted(names)[:NUM_NAMED]) + more


def _refuse_changed_matrices(
    model: Any, folder: PeftFolder, tensors: dict[str, torch.Tensor]
) -> None:
    """Raise `FolderError` for a matrix saved whole that is not the base model's own. PEFT saves
    that of an adapted unembedding beside its LoRA, as it was, in the precision of the adapter or of
    its training: either may be the rounded one."""
    unembedding = next(one.name for one in lora.layers_of(model) if one.flag == "train_unembed")
    for layer, name in folder.whole.items():
        own = model.get_output_embeddings().weight if layer == unembedding else None
        given = tensors[name]
        if own is None or own.shape != given.shape or not _same_but_rounded(own.cpu(), given):
            raise FolderError(
                f"{folder.directory / WEIGHTS_FILE}: {name} of shape {tuple(given.shape)} is not "
                "the base model's own matrix, so the adapter was trained on another one (its "
                f"vocabulary may have been resized). {OTHER_BASE}."
            )


def _same_but_rounded(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one, other.to(one.dtype)) or torch.equal(one.to(other.dtype), other)


# --- experts --------------------------------------------------------------------------------------


def _shape_of_experts(engine: Engine, folder: PeftFolder) -> LoraShape:
    """The shape of an adapter on experts, which is read in the form that this service writes: PEFT
    nests their matrices in an order that follows from the config. Raises `FolderError`."""
    file, config = folder.directory / CONFIG_FILE, folder.config
    if folder.has_patterns or config.get("use_rslora") or config["lora_alpha"] != LORA_ALPHA:
        raise FolderError(
            f"{file}: adapters with target_parameters are read with lora_alpha {LORA_ALPHA}, "
            f"without use_rslora and patterns, as this service writes them. {MERGE}."
        )
    said = [_set_of(config.get(key)) for key in ("target_modules", "target_parameters")]
    for flags in itertools.product((True, False), repeat=3):
        shape = LoraShape(folder.rank, flags[0], flags[1], flags[2])
        try:
            targets = lora.find_targets(engine.model, shape)
        except UserError:  # what this model has none of
            continue
        if said == [set(targets.modules), set(targets.parameters)]:
            break
    else:
        raise FolderError(
            f"{file}: target_modules and target_parameters are no set of layers that this service "
            f"trains in {engine.name}; of experts, only adapters in its own form are read. {MERGE}."
        )
    expected = engine.adapter_shapes(shape)
    if odd := {n for n in expected.keys() | folder.shapes.keys()
               if expected.get(n) != folder.shapes.get(n)}:  # fmt: skip
        raise FolderError(
            f"{folder.directory / WEIGHTS_FILE}: {_some(odd)} is not as in an adapter on "
            f"{engine.name}. {OTHER_BASE}."
        )
    return shape


def _set_of(names: Iterable[str] | str | None) -> set[str]:
    return {names} if isinstance(names, str) else set(names or ())
