#!/usr/bin/env bash
# transformers 5.5.4: after one text that is longer than a model with dynamic rotary positions was trained on,
# every shorter text gets other numbers for the rest of the process: the frequencies that grew for the long
# text are never set back.
#
# Where: modeling_rope_utils.py, dynamic_frequency_update: for models without layer types the length that was
#   reached is stored as `None_max_seq_len_cached`, while `max_seq_len_cached` is what is read; so the branch
#   that resets never sees that anything grew.
# Why it matters: a score depends on what else the process was asked before. Evaluate such a model in a
#   process that never saw a longer text, or keep texts within max_position_embeddings.
# Seen:
#   transformers 5.5.4, torch 2.13.0
#   a text of 20 tokens, again after itself: largest difference of its logits 0
#   the same after one text of 65 tokens (trained on 64): 0.19
#   its frequencies are still those of the long text: True; stored as None_max_seq_len_cached: 65
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    transformers==5.5.4 torch==2.13.0
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf"
venv/bin/python - <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
TRAINED_ON = 64
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=TRAINED_ON, initializer_range=0.2,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    )
).eval()
rotary = model.model.rotary_emb
short, long = torch.arange(20)[None], torch.arange(TRAINED_ON + 1)[None]


def logits(text):
    with torch.no_grad():
        return model(input_ids=text).logits


print(f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}")
before, frequencies = logits(short), rotary.inv_freq.clone()
again = float((logits(short) - before).abs().max())
print(f"a text of 20 tokens, again after itself: largest difference of its logits {again:.2g}")
logits(long)
grown = rotary.inv_freq.clone()
after = float((logits(short) - before).abs().max())
print(f"the same after one text of {TRAINED_ON + 1} tokens (trained on {TRAINED_ON}): {after:.2g}")
stays = torch.equal(rotary.inv_freq, grown) and not torch.equal(grown, frequencies)
reached = getattr(rotary, "None_max_seq_len_cached", None)
print(f"its frequencies are still those of the long text: {stays}; stored as None_max_seq_len_cached: {reached}")
assert again == 0 and after > 0, "changed: the short text has the same numbers again"
assert stays, "changed: the frequencies are set back"
PY
