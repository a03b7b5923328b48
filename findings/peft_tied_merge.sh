#!/usr/bin/env bash
# peft 0.21.2: merging a LoRA adapter on `lm_head` of a model with tied embeddings changes the input
# embedding too; and with `ensure_weight_tying=True`, the setting that PEFT's warning names, the update
# is added twice to the shared tensor. Unmerged, both answer as they were trained.
#
# Where: tuners/lora/layer.py, Linear.merge adds to `base_layer.weight.data` in place, and that tensor
#   is the embedding's; with tying the embedding's own LoRA layer adds the same product again. PEFT
#   warns when the adapter is made (huggingface/peft#2777), not when it is merged.
# Why it matters: Tinker trains the head by default (`train_unembed`), and most small models are tied.
#   A merged export then answers with another model than the one that was evaluated. Untie first (give
#   lm_head a clone of the weight and set `tie_word_embeddings` to false), or train without the head.
# Seen:
#   peft 0.21.2, transformers 5.5.4, torch 2.13.0
#   ensure_weight_tying=False: embedding moved by 1.00 times the update; logits moved by 0.89
#   ensure_weight_tying=True:  embedding moved by 2.00 times the update; logits moved by 0.69
#   untied first:              embedding moved by 0.00 times the update; logits moved by 4.8e-07
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
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")  # PEFT's words about tied models; see the comment above
print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}")


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(1, 17)[None]).logits


def merge(untie, tie_adapters):
    """How often the update is in the merged embedding, and how far merging moves the logits."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.1,
    ))
    if untie:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    embedding = model.get_input_embeddings().weight.detach().clone()
    lora = LoraConfig(r=4, lora_alpha=4, target_modules=["lm_head"], ensure_weight_tying=tie_adapters)
    adapted = get_peft_model(model, lora)
    head = adapted.base_model.model.lm_head
    for factor in (head.lora_A["default"].weight, head.lora_B["default"].weight):
        torch.nn.init.normal_(factor, std=0.1)  # stands for training
    update = head.get_delta_weight("default").detach().clone()
    before = logits(adapted)
    merged = adapted.merge_and_unload()
    moved = merged.get_input_embeddings().weight.detach() - embedding
    times = ((moved * update).sum() / (update * update).sum()).item()
    assert torch.allclose(moved, times * update, atol=1e-6), "changed: the embedding moves otherwise"
    return times, (logits(merged) - before).abs().max().item()


for label, untie, tie_adapters, expected in (
    ("ensure_weight_tying=False:", False, False, 1),
    ("ensure_weight_tying=True: ", False, True, 2),
    ("untied first:             ", True, False, 0),
):
    times, gap = merge(untie, tie_adapters)
    print(f"{label} embedding moved by {times:.2f} times the update; logits moved by {gap:.2g}")
    assert abs(times - expected) < 1e-3, f"changed: {label} moves the embedding {times:.2f} times, not {expected}"
    if expected:
        assert gap > 0.05, f"changed: {label} merging keeps the logits"
    else:
        assert gap < 1e-5, f"changed: {label} merging an untied model moves the logits"
PY
