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
from torch.nn.functional import linear


class LoraLinear(Linear):
    """PEFT's layer with another forward: names, initialisation and storage are PEFT's."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base: Any = self.base_layer
        adapters = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or not adapters:
            return base(x, *args, **kwargs)
        (adapter,) = adapters
        a_RI: Any = self.lora_A[adapter].weight
        b_OR: Any = self.lora_B[adapter].weight
        if a_RI.dtype != x.dtype or base.weight.dtype != x.dtype:
            return super().forward(x, *args, **kwargs)  # half precision: PEFT knows what to cast
        x_NI = x.reshape(-1, x.shape[-1])
        y_NO = linear(x_NI, base.weight, base.bias)
        y_NO.addmm_(linear(x_NI, a_RI), b_OR.T, alpha=self.scaling[adapter])
        return y_NO.view(*x.shape[:-1], -1)


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
