#!/usr/bin/env bash
# peft 0.21.2: `merge(safe_merge=True)` on a bfloat16 model rounds twice and gives other weights than
# the default merge, which rounds once; `safe` only means that it looks for NaN.
#
# Where: tuners/lora/layer.py, Linear.merge: the safe branch does
#   `orig_weight += delta_weight.to(orig_dtype)`, the other one `base_layer.weight.data += delta_weight`
#   with the update in float32 (PEFT keeps adapters in float32 by default). The docstring names no
#   difference in the result.
# Why it matters: two exports of one adapter are not the same model, so a hash or a score of one says
#   nothing certain about the other; the one called safe is the less exact. Say which merge was made.
# Seen:
#   peft 0.21.2, torch 2.13.0: one 256 x 256 bfloat16 weight, adapter in torch.float32
#   safe_merge=False: 0 of 65536 elements differ from the float32 sum rounded once
#   safe_merge=True:  6897 of 65536 elements differ from the float32 sum rounded once
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    torch==2.13.0 transformers==5.5.4 peft==0.21.2 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf"
venv/bin/python - <<'PY'
import peft
import torch
from peft import LoraConfig, get_peft_model

SIZE = 256
differ = {}
for safe in (False, True):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(SIZE, SIZE, bias=False, dtype=torch.bfloat16))
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=8, target_modules=["0"]))
    layer = adapted.base_model.model[0]
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.05)  # stands for training
    update = layer.get_delta_weight("default").detach()
    once = (layer.base_layer.weight.detach().float() + update).to(torch.bfloat16)
    merged = adapted.merge_and_unload(safe_merge=safe)[0].weight.detach()
    differ[safe] = int((merged != once).sum())
    if not safe:
        print(
            f"peft {peft.__version__}, torch {torch.__version__.split('+')[0]}: one {SIZE} x {SIZE} bfloat16 "
            f"weight, adapter in {update.dtype}"
        )
    print(
        f"{f'safe_merge={safe}:':17} {differ[safe]} of {once.numel()} elements differ from the float32 sum "
        "rounded once"
    )
assert differ[False] == 0, "changed: the default merge no longer rounds once"
assert differ[True] > 0.05 * SIZE * SIZE, "changed: safe_merge rounds once"
PY
