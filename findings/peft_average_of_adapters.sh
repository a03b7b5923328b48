#!/usr/bin/env bash
# peft 0.21.2: the average of two equal adapters, `add_weighted_adapter` with the weights 0.5 and 0.5, is
# twice the adapter with `combination_type="linear"`, half of it with "ties", and the adapter itself with
# "cat" and "svd". With the weights 1 and 1 it is four times, once and twice the adapter.
#
# Where: tuners/lora/model.py, _generalized_task_arithmetic_weighted_adapter multiplies A and B by the
#   root of each weight and adds up the As and the Bs apart, so that the product has all cross terms:
#   (2 * sqrt(0.5))^2 = 2. The documentation calls "linear" a very rough approximation; that weights which
#   add up to 1 come to an update of another size is not said, and no warning tells.
# Why it matters: averaging the last rounds of a run, or runs of several seeds, is a usual way to a
#   steadier model, and "linear" with equal weights is how it is often written. Take "cat" or "svd", whose
#   product is the weighted sum of the products.
# Seen (times the update of the one adapter; density 1 for TIES):
#   peft 0.21.2, torch 2.13.0
#   linear  0.5 + 0.5: 2.00   1 + 1: 4.00   0.3 + 0.7: 1.92
#   ties    0.5 + 0.5: 0.50   1 + 1: 1.00   0.3 + 0.7: 0.48
#   cat     0.5 + 0.5: 1.00   1 + 1: 2.00   0.3 + 0.7: 1.00
#   svd     0.5 + 0.5: 1.00   1 + 1: 2.00   0.3 + 0.7: 1.00
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    torch==2.13.0 transformers==5.5.4 peft==0.21.2 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf"
venv/bin/python - <<'PY'
import warnings

import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")  # of names and of a density of 1
print(f"peft {peft.__version__}, torch {torch.__version__.split('+')[0]}")
base = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
))
config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"])
model = get_peft_model(base, config, adapter_name="one")
model.add_adapter("other", LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]))
layer = model.base_model.model.model.layers[0].self_attn.q_proj
torch.manual_seed(1)
for factors in (layer.lora_A, layer.lora_B):
    factors["one"].weight.data = torch.randn_like(factors["one"].weight)
    factors["other"].weight.data = factors["one"].weight.data.clone()
update = layer.get_delta_weight("one").detach()


def times(kind, weights):
    """How often the update is in the combination, which holds nothing else."""
    name = f"{kind}_{'_'.join(str(int(10 * w)) for w in weights)}"
    density = {"density": 1.0} if kind == "ties" else {}
    model.add_weighted_adapter(["one", "other"], weights, name, combination_type=kind, **density)
    combined = layer.get_delta_weight(name).detach()
    factor = (combined * update).sum() / (update * update).sum()
    assert torch.allclose(combined, factor * update, atol=1e-4), f"changed: {kind} is no multiple"
    return factor.item()


EXPECTED = {"linear": (2, 4, 1.917), "ties": (0.5, 1, 0.479), "cat": (1, 2, 1), "svd": (1, 2, 1)}
for kind, expected in EXPECTED.items():
    halves, ones, uneven = (times(kind, weights) for weights in ([0.5, 0.5], [1.0, 1.0], [0.3, 0.7]))
    print(f"{kind:7} 0.5 + 0.5: {halves:.2f}   1 + 1: {ones:.2f}   0.3 + 0.7: {uneven:.2f}")
    for found, seen in zip((halves, ones, uneven), expected, strict=True):
        assert abs(found - seen) < 0.01, f"changed: {kind} gives {found:.3f} times the update, not {seen}"
PY
