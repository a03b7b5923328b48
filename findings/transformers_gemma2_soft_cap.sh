#!/usr/bin/env bash
# transformers 5.5.4: Gemma 2 is loaded with sdpa attention by default, and sdpa leaves out the soft
# cap of the attention scores (config `attn_logit_softcapping`, 50.0 in Gemma 2) without a word.
#
# Where: models/gemma2/modeling_gemma2.py sets `_supports_sdpa = True` and passes `softcap=` to the
#   attention function; integrations/sdpa_attention.py takes it in **kwargs and never reads it.
# Why it matters: logits, losses and samples are not those of the model that was published, and an
#   adapter trained so is trained around another model. Ask for `attn_implementation="eager"` where
#   the config has the key. How much differs depends on how large the scores are; this model is random
#   and its cap small, so that one forward pass shows it.
# Seen:
#   transformers 5.5.4, torch 2.13.0; attention by default: sdpa
#   largest difference of logits
#     eager with cap - eager without cap  3.27
#     sdpa  with cap - eager with cap     3.27
#     sdpa  with cap - sdpa  without cap  0
#   messages and warnings about the cap: none
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    torch==2.13.0 transformers==5.5.4 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf"
venv/bin/python - <<'PY'
import contextlib
import io
import logging
import warnings

import torch
import transformers
from transformers import AutoModelForCausalLM, Gemma2Config

log = io.StringIO()
transformers.logging.add_handler(logging.StreamHandler(log))


def logits(cap, attention=None):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=1.0,
        attn_logit_softcapping=cap,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        return model(torch.arange(1, 17)[None]).logits, model.config._attn_implementation


with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stderr(io.StringIO()) as stderr:
    warnings.simplefilter("always")
    default_with, default = logits(5.0)
    default_without, _ = logits(None)
    eager_with, _ = logits(5.0, "eager")
    eager_without, _ = logits(None, "eager")


def gap(one, other):
    return (one - other).abs().max().item()


said = [str(one.message) for one in warned] + [log.getvalue() + stderr.getvalue()]
said = [text for text in said if "cap" in text.lower()]
torch_version = torch.__version__.split("+")[0]
print(f"transformers {transformers.__version__}, torch {torch_version}; attention by default: {default}")
print("largest difference of logits")
print(f"  eager with cap - eager without cap  {gap(eager_with, eager_without):.3g}")
print(f"  {default}  with cap - eager with cap     {gap(default_with, eager_with):.3g}")
print(f"  {default}  with cap - {default}  without cap  {gap(default_with, default_without):.3g}")
print("messages and warnings about the cap:", said or "none")
assert default == "sdpa", f"changed: the default attention of Gemma 2 is {default}"
assert gap(eager_with, eager_without) > 0.1, "changed: the cap makes no difference in eager attention"
assert gap(default_with, default_without) == 0, "changed: sdpa applies the soft cap"
assert gap(default_with, eager_with) > 0.1, "changed: sdpa and eager agree on a capped model"
assert not said, f"changed: transformers speaks of the cap: {said}"
PY
