"""PEFT's LoRA layer for `torch.nn.Linear`, computed in fewer passes over its output.

A layer is y = x W^T + b + s (x A^T) B^T, with s = alpha / rank. PEFT makes the second term, its
multiple and the sum one after another, each a tensor as large as y, and as many again in the
backward pass; on a small model that is a third of a step. Here a product adds to what is there.

Suffixes: N rows (all leading dimensions of x), I and O inputs and outputs, R the rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer


class LoraLinear(Linear):
    """PEFT's layer with another forward: names, initialisation and storage are PEFT's."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters:
            return self.base_layer(x, *args, **kwargs)
        adapters = [name for name in self.active_adapters if name in self.lora_A]
        if not adapters:
            return self.base_layer(x, *args, **kwargs)
        weight = self.base_layer.weight
        (adapter,) = adapters
        lora_a = self.lora_A[adapter].weight
        if args or kwargs or lora_a.dtype != x.dtype or weight.dtype != x.dtype:
            return super().forward(x, *args, **kwargs)  # half precision: PEFT knows what to cast
        return _LoraProduct.apply(  # pyright: ignore[reportReturnType]
            x, weight, self.base_layer.bias, lora_a, self.lora_B[adapter].weight,
            self.scaling[adapter],
        )  # fmt: skip


def use_in(config: LoraConfig) -> None:
    """Make PEFT wrap linear layers in `LoraLinear`."""
    config._register_custom_module({torch.nn.Linear: _make_layer})  # pyright: ignore


def _make_layer(
    target: torch.nn.Module,
    adapter_name: str,
    config: LoraConfig,
    parameter_name: str | None = None,
    **kwargs: Any,
) -> LoraLinear | None:
    """None leaves a layer to PEFT: one that is adapted as a parameter, or stored the other way."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if parameter_name is not None or config.fan_in_fan_out or type(base) is not torch.nn.Linear:
        return None
    return LoraLinear(target, adapter_name, config=config, **kwargs)


class _LoraProduct(torch.autograd.Function):
    """The layer's formula, for a base weight that is never trained."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        inner_NR = (x_NI @ a_RI.T).mul_(scaling)
        y_NO = torch.nn.functional.linear(x_NI, weight_OI, bias_O).addmm_(inner_NR, b_OR.T)
        ctx.save_for_backward(x, weight_OI, a_RI, b_OR, inner_NR)
        ctx.scaling = scaling
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_y: torch.Tensor
    ) -> tuple[torch.Tensor | None, None, None, torch.Tensor, torch.Tensor, None]:
        x, weight_OI, a_RI, b_OR, inner_NR = ctx.saved_tensors
        x_NI = x.reshape(-1, x.shape[-1])
        grad_NO = grad_y.reshape(-1, grad_y.shape[-1])
        grad_NR = (grad_NO @ b_OR).mul_(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_NO @ weight_OI).addmm_(grad_NR, a_RI).view(x.shape)
        return grad_x, None, None, grad_NR.T @ x_NI, grad_NO.T @ inner_NR, None
