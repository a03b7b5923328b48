"""Which layers of a base model a LoRA adapter covers, whatever family the model is of.

Layers are told apart by where they stand in the model, not by a table of model names: the output
embedding is the unembedding, linear layers below an attention block are attention, all other
linear layers are MLP. Alpha is 32 for every rank and dropout is 0, as the vendor documents.

In mixture-of-experts models, the experts of a layer are parameters of three dimensions, and PEFT
adapts them as such: each expert has LoRA matrices of the full rank. Routers are never trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.pytorch_utils import Conv1D

from local_tinker import lora_linear
from local_tinker.wire import UserError

LORA_ALPHA = 32
ATTENTION_NAMES = frozenset({"attn", "self_attn", "attention", "self_attention", "linear_attn"})
ROUTER_NAMES = frozenset({"gate", "router", "router_gate", "shared_expert_gate"})


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer of an adapter that was made elsewhere; its update is alpha / rank times B A."""

    name: str
    rank: int
    alpha: float


@dataclass(frozen=True)
class LoraShape:
    """Which LoRA matrices a run has: all layers of the kinds that are trained, of one rank and with
    `LORA_ALPHA`, or the `layers` that are named, where the adapter was made elsewhere."""

    rank: int
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    layers: tuple[AdaptedLayer, ...] = ()

    @property
    def alpha(self) -> float:
        """Of its first layer, where an adapter that was made elsewhere has several."""
        return self.layers[0].alpha if self.layers else LORA_ALPHA

    def scalings(self, names: Iterable[str]) -> dict[str, float]:
        """By layer, what its B A is multiplied by."""
        if not self.layers:
            return dict.fromkeys(names, LORA_ALPHA / self.rank)
        own = {layer.name: layer.alpha / layer.rank for layer in self.layers}
        return {name: own[name] for name in names}


class Targets(NamedTuple):
    """What PEFT is told to adapt: layers, and parameters that are not the weight of one layer."""

    modules: list[str]
    parameters: list[str]


class Layer(NamedTuple):
    """A weight matrix of the base model. `flag` names the train_* flag that it falls under."""

    name: str  # of the module, as in the base model without adapters
    parameter: str | None  # the experts' parameter; None for a linear layer
    flag: str
    num_inputs: int = 0  # of a linear layer
    num_outputs: int = 0


def make_config(model: Any, base_model_name: str, shape: LoraShape) -> LoraConfig:
    """Return PEFT's configuration for a shape; a trained unembedding is untied first.

    Raises `UserError` when a flag asks for what the model lacks, or when nothing is to be trained.
    """
    config = config_of(model, base_model_name, shape)
    if shape.train_unembed:
        untie_unembedding(model)
    lora_linear.use_in(config)
    return config


def config_of(model: Any, base_model_name: str, shape: LoraShape) -> LoraConfig:
    """PEFT's configuration for a shape, as it is written beside the weights."""
    named, alpha = [layer.name for layer in shape.layers], shape.alpha
    targets = Targets(named, []) if named else find_targets(model, shape)
    return LoraConfig(
        r=shape.rank, lora_alpha=alpha, lora_dropout=0.0, bias="none",  # pyright: ignore
        rank_pattern={one.name: one.rank for one in shape.layers if one.rank != shape.rank},
        alpha_pattern={one.name: one.alpha for one in shape.layers if one.alpha != alpha},
        task_type="CAUSAL_LM", target_modules=targets.modules,
        target_parameters=targets.parameters or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        base_model_name_or_path=base_model_name,
    )  # fmt: skip


def check_model(model: Any) -> None:
    """Raise `UserError` for a model that is no decoder with an unembedding."""
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            f"{kind} has an encoder beside its decoder; this service takes decoder-only language "
            "models"
        )
    if model.get_output_embeddings() is None:
        raise UserError(
            f"{kind} has no output embeddings that transformers knows of, so it cannot be trained "
            "or sampled from here; use another base model"
        )


def find_targets(model: Any, shape: LoraShape) -> Targets:
    """What the shape covers in this model. Each flag that is set must cover something."""
    check_model(model)
    wanted = {
        flag
        for flag in ("train_attn", "train_mlp", "train_unembed")
        if getattr(shape, flag)
    }  # fmt: skip
    if not wanted:
        raise UserError(
            "none of attention, MLP and unembedding is to be trained; set at least one train_* flag"
        )
    layers = list(layers_of(model))
    for flag in sorted(wanted.difference(layer.flag for layer in layers)):
        raise UserError(
            f"{flag}=True asks for layers that LoRA can be put on, and {type(model).__name__} has "
            f"none of that kind; set {flag}=False"
        )
    chosen = [layer for layer in layers if layer.flag in wanted]
    has_experts = any(layer.parameter for layer in layers)
    modules, parameters = [], []
    for layer in chosen:
        if layer.parameter is not None:
            parameters.append(f"{layer.name}.{layer.parameter}")
        elif has_experts and layer.flag == "train_mlp":
            # For older checkpoints, PEFT takes a layer that is called gate_proj, in some families,
            # to mean the experts. So the dense layers of such models are named by their weight.
            parameters.append(f"{layer.name}.weight")
        else:
            modules.append(layer.name)
    # Other tools read the short names (q_proj); full paths where those would catch too much.
    leaves = {_leaf(name) for name in modules}
    others = _base_names(model).difference(modules)
    is_ambiguous = any(_leaf(name) in leaves for name in others)
    return Targets(modules if is_ambiguous else sorted(leaves), parameters)


def layers_of(model: Any) -> Iterator[Layer]:
    """Every weight matrix of the language model that LoRA can be put on, routers left out."""
    unembedding = model.get_output_embeddings()
    decoder = model.get_decoder()
    in_decoder = {id(module) for module in decoder.modules()}  # not in a vision tower, say
    for name, module in model.named_modules():
        if ".lora_" in name or isinstance(module, BaseTunerLayer):
            continue
        if module is unembedding or module is getattr(unembedding, "base_layer", None):
            yield Layer(_base_name(name), None, "train_unembed", *_sizes(module))
            continue
        parts = _base_name(name).split(".")
        if id(module) not in in_decoder or ROUTER_NAMES.intersection(parts):
            continue
        flag = "train_attn" if ATTENTION_NAMES.intersection(parts) else "train_mlp"
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            yield Layer(_base_name(name), None, flag, *_sizes(module))
        elif not type(module).__module__.startswith("torch.nn."):
            for parameter_name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3 and parameter.is_floating_point():
                    yield Layer(_base_name(name), parameter_name, flag)


def _sizes(module: Any) -> tuple[int, int]:
    """How many inputs and outputs a linear layer has."""
    num_outputs, num_inputs = module.weight.shape
    return (num_outputs, num_inputs) if isinstance(module, Conv1D) else (num_inputs, num_outputs)


def _base_names(model: Any) -> set[str]:
    """The names of all modules as they are without adapters."""
    return {
        _base_name(name)
        for name, module in model.named_modules()
        if ".lora_" not in name and not isinstance(module, BaseTunerLayer)
    }


def _base_name(name: str) -> str:
    """The name of a module in the base model. PEFT nests wrappers where it adapts parameters."""
    while name.endswith(".base_layer"):
        name = name.removesuffix(".base_layer")
    return name


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def is_tied(model: Any) -> bool:
    """Whether embedding and unembedding are one tensor."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def untie_unembedding(model: Any) -> None:
    """Give a tied unembedding its own copy, so that merging its LoRA spares the embedding."""
    if is_tied(model):
        unembedding = model.get_output_embeddings()
        unembedding.weight = torch.nn.Parameter(
            unembedding.weight.detach().clone(), requires_grad=False
        )
        model.config.tie_word_embeddings = False
