#!/usr/bin/env bash
# transformers 5.5.4 with peft 0.21.2: AutoModelForCausalLM.from_pretrained(ADAPTER_FOLDER) loads a
# LoRA adapter without its part on `lm_head`, which stays newly initialized; PeftModel loads all of it.
#
# Where: integrations/peft.py renames "base_model.model.model." to "model."; PEFT's own name for the
#   head is "base_model.model.lm_head.", which that does not match. No error and no Python warning, only
#   a table in the log that calls the keys UNEXPECTED and "can be ignored".
# Why it matters: the head is trained by default on Tinker (`train_unembed`), so the one-line way of
#   loading an adapter answers with another model than the one that was evaluated. Load adapters with
#   PeftModel.from_pretrained(base, folder), and compare logits once.
# Seen:
#   transformers 5.5.4, peft 0.21.2, torch 2.13.0
#   in the file: lm_head and 2 q_proj; largest logit 12
#   PeftModel.from_pretrained             largest difference of logits 0
#   AutoModelForCausalLM.from_pretrained  largest difference of logits 11.9
#     lm_head.lora_B is all zeros: True; q_proj.lora_B as saved: True; Python warnings: none
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    torch==2.13.0 transformers==5.5.4 peft==0.21.2 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_HUB_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
import warnings

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()  # the table; see the comment above
print(f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__.split('+')[0]}")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=False, initializer_range=0.1,
)
LlamaForCausalLM(config).save_pretrained("base")


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(1, 17)[None]).logits


def gap(model):
    return (logits(model) - wanted).abs().max().item()


lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"])
trained = get_peft_model(AutoModelForCausalLM.from_pretrained("base"), lora)
for name, parameter in trained.named_parameters():
    if "lora_B" in name:  # zeros at the start; this stands for training
        torch.nn.init.normal_(parameter)
wanted = logits(trained)
trained.save_pretrained("adapter", save_embedding_layers=False)
saved = load_file("adapter/adapter_model.safetensors")
print(
    f"in the file: lm_head and {sum('q_proj.lora_A' in name for name in saved)} q_proj; "
    f"largest logit {wanted.abs().max().item():.3g}"
)
assert "base_model.model.lm_head.lora_B.weight" in saved, "changed: PEFT names the head otherwise"

by_peft = gap(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "adapter"))
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    model = AutoModelForCausalLM.from_pretrained("adapter")
by_auto = gap(model)
loaded = dict(model.named_parameters())
head_is_empty = not loaded["lm_head.lora_B.default.weight"].any().item()
name = "model.layers.0.self_attn.q_proj.lora_B"
rest_is_right = torch.equal(loaded[f"{name}.default.weight"], saved[f"base_model.model.{name}.weight"])
print(f"PeftModel.from_pretrained             largest difference of logits {by_peft:.3g}")
print(f"AutoModelForCausalLM.from_pretrained  largest difference of logits {by_auto:.3g}")
print(
    f"  lm_head.lora_B is all zeros: {head_is_empty}; q_proj.lora_B as saved: {rest_is_right}; "
    f"Python warnings: {[str(one.message) for one in warned] or 'none'}"
)
assert by_peft < 1e-5, "changed: PeftModel does not load the adapter as it was"
assert rest_is_right, "changed: AutoModelForCausalLM does not load the other layers either"
assert by_auto > 0.1, "changed: AutoModelForCausalLM loads the adapter on lm_head"
assert not warned, "changed: a warning is given"
PY
