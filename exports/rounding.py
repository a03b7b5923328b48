"""What rounding alone does to a checkpoint, measured on base and adapter from where they lie.

It is what an export is held against, so nothing here reads the export: a wrong one cannot widen it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from exports.gguf_weights import ROUTER
from exports.loaded_transformers import load_adapter, model_logprobs, num_parameters
from exports.reference import Reference
from exports.self_check import Noise, difference

if TYPE_CHECKING:
    import torch

Rounding = Literal["float32", "bfloat16", "float16", "gguf-f32", "gguf-f16", "gguf-q8_0"]

MAX_EXACT_PARAMETERS = 500_000_000  # in float64, 4 GB
Q8_0_BLOCK = 32  # values that share one scale


def rounding_noise(
    base_dir: Path, adapter_dir: Path, rounding: Rounding, reference: Reference
) -> Noise | None:
    """How far the checkpoint's log-probabilities move when its weights are rounded so; None for
    float32 of a large model, which is not computed in float64 as well.

    For float32 the same is computed in float64. For GGUF the merged matrices, and what is
    multiplied with them, are rounded as its format says; `gguf-f32` rounds nothing. A service that
    computes in bfloat16 is off by that itself, and then that is added.
    """
    import torch

    model = load_adapter(base_dir, adapter_dir, torch.float32)
    is_large = num_parameters(model) > MAX_EXACT_PARAMETERS
    texts = [one.tokens for one in reference.scored]
    exact = [model_logprobs(model, tokens) for tokens in texts]
    moved: dict[str, list[list[float]]] = {}
    rounded: Callable[[Sequence[int]], list[float]] | None = None
    if rounding in ("gguf-f16", "gguf-q8_0"):
        rounded = RoundedModel(merged(model), rounding).logprobs
        how = f"computing in {rounding.removeprefix('gguf-')} as llama.cpp does"
        moved[how] = [rounded(tokens) for tokens in texts]
    del model
    if rounding in ("bfloat16", "float16"):
        how = f"computing in {rounding}"
        moved[how] = _moved(base_dir, adapter_dir, getattr(torch, rounding), texts)
    elif rounding in ("float32", "gguf-f32") and not is_large:
        moved["computing in float32"] = _moved(base_dir, adapter_dir, torch.float64, texts)
    if reference.precision != "float32" and rounding != "bfloat16":
        moved["the service's bfloat16"] = _moved(base_dir, adapter_dir, torch.bfloat16, texts)
    if not moved:
        return None
    found = [difference(exact, one) for one in moved.values()]
    mean, largest = sum(one.mean for one in found), sum(one.largest for one in found)
    return Noise(mean, largest, " and ".join(moved), rounded)


def _moved(
    base_dir: Path, adapter_dir: Path, dtype: torch.dtype, texts: Sequence[Sequence[int]]
) -> list[list[float]]:
    model = load_adapter(base_dir, adapter_dir, dtype).to(dtype)
    _plainly(model.get_base_model())  # the default kernel of experts knows no float64
    return [model_logprobs(model, tokens) for tokens in texts]


def _plainly(model: Any) -> None:
    """Let experts be computed one after another, each by plain multiplications."""
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")


# --- as llama.cpp rounds --------------------------------------------------------------------------


class RoundedModel:
    """A checkpoint as llama.cpp computes it: matrices as a GGUF file holds them, and what is
    multiplied with one rounded alike before. Vectors and the routers of experts stay in float32.

    The model that is given, without adapters, is another one afterwards.
    """

    def __init__(self, model: Any, rounding: Rounding) -> None:
        self._model = model
        self._rounding = rounding
        named = dict(self._model.named_parameters())  # each once
        self._whole = {one.data_ptr() for name, one in named.items() if name.endswith(ROUTER)}
        for one in named.values():
            if one.ndim >= 2 and one.data_ptr() not in self._whole:
                one.data = self._rounded(one.data)
        _plainly(self._model)

    def logprobs(self, tokens: Sequence[int]) -> list[float]:
        with self.multiplying():
            return model_logprobs(self._model, tokens)

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        if self._rounding == "gguf-f16":
            return values.half().float()
        return q8_0(values) if values.shape[-1] % Q8_0_BLOCK == 0 else values

    @contextmanager
    def multiplying(self) -> Iterator[None]:
        """Inside, linear layers and experts round what they are given."""
        from torch.nn.functional import linear
        from torch.overrides import TorchFunctionMode

        of_control = self

        class Mode(TorchFunctionMode):
            def __torch_function__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                if func is linear and args[1].data_ptr() not in of_control._whole:
                    args = (of_control._rounded(args[0]), *args[1:])
                return func(*args, **(kwargs or {}))

        with Mode():
            yield


def merged(model: Any) -> Any:
    """The adapter merged into the base, a tied head untied first, which merging changes alone."""
    import torch

    base = model.get_base_model()
    head = base.get_output_embeddings()
    layer = getattr(head, "base_layer", head)
    if layer.weight is base.get_input_embeddings().weight:
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        base.config.get_text_config().tie_word_embeddings = False
        base.config.tie_word_embeddings = False
    return model.merge_and_unload()


def q8_0(weights: torch.Tensor) -> torch.Tensor:
    """Weights as 8-bit whole numbers with a float16 scale for each block of 32, and back."""
    blocks = weights.reshape(-1, Q8_0_BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    inverse = scale.reciprocal().masked_fill(scale == 0, 0.0)
    return ((blocks * inverse).round() * scale.half().float()).reshape(weights.shape)
