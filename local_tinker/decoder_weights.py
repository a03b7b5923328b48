"""The weights of a decoder whose structure is known exactly, and LoRA matrices laid over them.

Known are the families in `FAMILIES`, by the class of the whole model and of every part that is read
here; everything else goes through its own transformers forward. The base model's tensors are used
as they are, not copied and not merged with an adapter's; of an adapter, the matrices A of layers
that share an input are put into one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.mistral.modeling_mistral import MistralForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

from local_tinker.lora import LoraShape
from local_tinker.wire import UserError

FAMILIES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})  # the others look at the length
ROPE_BLOCK_POSITIONS = 1024
_FILE_PREFIX = "base_model.model."


class LoraPair(NamedTuple):
    """One layer's LoRA matrices, A (rank, inputs) and B (outputs, rank); `scaling` is what B A is
    multiplied by."""

    A: Tensor
    B: Tensor
    scaling: float


class LayerUpdate(NamedTuple):
    """Which rows of the shared A belong to a layer, and its B, transposed and scaled."""

    columns: slice
    B_RO: Tensor


class Product(NamedTuple):
    """Linear layers over one input."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    A_RI: Tensor | None  # of all adapted layers
    updates: tuple[LayerUpdate | None, ...]

    def apply(self, inputs_NI: Tensor) -> list[Tensor]:
        """Each layer's output, (N, outputs)."""
        outputs = [
            functional.linear(inputs_NI, weight, bias)
            for weight, bias in zip(self.weights, self.biases, strict=True)
        ]
        if self.A_RI is None:
            return outputs
        low_NR = functional.linear(inputs_NI.to(self.A_RI.dtype), self.A_RI)
        for output_NO, update in zip(outputs, self.updates, strict=True):
            if update is None:
                continue
            low = low_NR[:, update.columns]
            if output_NO.dtype == low.dtype:
                output_NO.addmm_(low, update.B_RO)
            else:  # the update is rounded once, when it has been added
                output_NO.add_(low @ update.B_RO)
        return outputs


class Norm(NamedTuple):
    weight: Tensor
    eps: float

    def apply(self, inputs: Tensor) -> Tensor:
        return functional.rms_norm(inputs, self.weight.shape, self.weight, self.eps)


class Layer(NamedTuple):
    """One decoder layer."""

    norm: Norm
    qkv: Product
    q_norm: Norm | None  # of each head
    k_norm: Norm | None
    window: int | None  # how many positions a token sees, itself among them; None: all before it
    attended: Product
    mlp_norm: Norm
    gate_up: Product
    activation: Callable[[Tensor], Tensor]
    down: Product


class Rope:
    """Cosines and signed sines of rotary positions, in a table that grows.

    Blocks have one length, so that a position's bits do not depend on how many are asked for.
    """

    def __init__(self, rotary: Any, like: Tensor) -> None:
        self._rotary, self._like = rotary, like
        self._table_2TD = like.new_zeros((2, 0, 0))

    def table(self, num_positions: int) -> Tensor:
        """(2, positions, head size): cosines and sines of at least `num_positions`."""
        while self._table_2TD.shape[1] < num_positions:
            start = self._table_2TD.shape[1]
            positions = torch.arange(start, start + ROPE_BLOCK_POSITIONS, device=self._like.device)
            cos_TD, sin_TD = (part[0] for part in self._rotary(self._like, positions[None]))
            half = cos_TD.shape[-1] // 2
            signed_TD = torch.cat([-sin_TD[:, :half], sin_TD[:, half:]], dim=-1)
            block_2TD = torch.stack([cos_TD, signed_TD])
            self._table_2TD = torch.cat([self._table_2TD, block_2TD], 1) if start else block_2TD
        return self._table_2TD


class DecoderWeights(NamedTuple):
    """A whole decoder."""

    embedding_VH: Tensor
    layers: tuple[Layer, ...]
    norm: Norm
    unembedding: Product
    rope: Rope
    num_kv_heads: int
    head_size: int


def is_known(model: Any) -> bool:
    """Whether a transformers model, perhaps with PEFT's layers in it, can be read here."""
    if type(model) not in FAMILIES or model.config.rope_parameters["rope_type"] not in ROPE_TYPES:
        return False
    products = [module for _, module in _products(model)]
    return all(type(module) is torch.nn.Linear for module in products)


def read_lora(
    tensors: Mapping[str, Tensor], shape: LoraShape, device: torch.device
) -> dict[str, LoraPair]:
    """The LoRA matrices of a PEFT file, by the names of their layers. Raises `UserError`."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.removeprefix(_FILE_PREFIX).rpartition(".lora_")
        parts.setdefault(name, {})[part] = tensor.to(device)
    for name, found in parts.items():
        if found.keys() != {"A.weight", "B.weight"}:
            raise UserError(
                f"adapter_model.safetensors: layer {name!r} has {', '.join(sorted(found))}; "
                "expected lora_A.weight and lora_B.weight"
            )
    scalings = shape.scalings(parts)
    return {
        name: LoraPair(found["A.weight"], found["B.weight"], scalings[name])
        for name, found in parts.items()
    }


def read_weights(model: Any, lora: Mapping[str, LoraPair], name: str) -> DecoderWeights:
    """A known model's weights under LoRA matrices, {} for none.

    Raises `UserError` when a matrix fits no layer; `name` is what they came from.
    """
    shapes = {path: module.weight.shape for path, module in _products(model)}
    for path, pair in lora.items():
        if path not in shapes or (pair.B.shape[0], pair.A.shape[1]) != tuple(shapes[path]):
            raise UserError(
                f"{name} does not fit the base model, which has no layer {path!r} of "
                f"{pair.A.shape[1]} inputs and {pair.B.shape[0]} outputs"
            )
    config, decoder = model.config, model.model
    layers = tuple(
        _read_layer(layer, _window(model, index), f"model.layers.{index}", lora)
        for index, layer in enumerate(decoder.layers)
    )
    embedding_VH = decoder.embed_tokens.weight
    head_size = decoder.layers[0].self_attn.head_dim
    return DecoderWeights(
        embedding_VH=embedding_VH,
        layers=layers,
        norm=_norm(decoder.norm),
        unembedding=_product({"lm_head": model.lm_head}, lora),
        rope=Rope(decoder.rotary_emb, embedding_VH),
        num_kv_heads=config.num_key_value_heads,
        head_size=head_size,
    )


def _read_layer(layer: Any, window: int | None, path: str, lora: Mapping[str, LoraPair]) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    has_head_norms = type(attention).__name__ == "Qwen3Attention"

    def product(part: str, module: Any, *names: str) -> Product:
        modules = {f"{path}.{part}.{name}": getattr(module, name) for name in names}
        return _product(modules, lora)

    return Layer(
        norm=_norm(layer.input_layernorm),
        qkv=product("self_attn", attention, "q_proj", "k_proj", "v_proj"),
        q_norm=_norm(attention.q_norm) if has_head_norms else None,
        k_norm=_norm(attention.k_norm) if has_head_norms else None,
        window=window,
        attended=product("self_attn", attention, "o_proj"),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_up=product("mlp", mlp, "gate_proj", "up_proj"),
        activation=mlp.act_fn,
        down=product("mlp", mlp, "down_proj"),
    )


def _product(modules: Mapping[str, Any], lora: Mapping[str, LoraPair]) -> Product:
    plain = [_plain(module) for module in modules.values()]
    updates: list[LayerUpdate | None] = []
    num_rows = 0
    for path in modules:
        if path in lora:
            pair = lora[path]
            rank = pair.A.shape[0]
            columns = slice(num_rows, num_rows + rank)
            updates.append(LayerUpdate(columns, (pair.scaling * pair.B).t().contiguous()))
            num_rows += rank
        else:
            updates.append(None)
    stacked = [lora[path].A for path in modules if path in lora]
    return Product(
        tuple(module.weight for module in plain),
        tuple(module.bias for module in plain),
        torch.cat(stacked) if stacked else None,
        tuple(updates),
    )


def _products(model: Any) -> Iterator[tuple[str, Any]]:
    """The path of every linear layer that is read here, and the layer without PEFT's wrapping."""
    for index, layer in enumerate(model.model.layers):
        for part, names in (
            ("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")),
            ("mlp", ("gate_proj", "up_proj", "down_proj")),
        ):
            for name in names:
                module = getattr(getattr(layer, part), name)
                yield f"model.layers.{index}.{part}.{name}", _plain(module)
    yield "lm_head", _plain(model.lm_head)


def _plain(module: Any) -> Any:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _norm(module: Any) -> Norm:
    return Norm(module.weight, module.variance_epsilon)


def _window(model: Any, layer: int) -> int | None:
    """Mistral slides in all layers or none, Qwen as its configuration says of each layer."""
    config = model.config
    if type(model) is MistralForCausalLM:
        return config.sliding_window
    if type(model) is LlamaForCausalLM:
        return None
    return config.sliding_window if config.layer_types[layer] == "sliding_attention" else None
