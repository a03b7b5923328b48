#!/usr/bin/env bash
# transformers 5.5.4: with LongRoPE (Phi-3 and its like), one text of a batch that is longer than
# original_max_position_embeddings changes the numbers of every other text of that batch: the long factors are
# taken for the whole batch.
#
# Where: modeling_rope_utils.py, longrope_frequency_update: `seq_len = max(position_ids) + 1` of all rows
#   decides between the short and the long factors.
# Why it matters: a short answer's log-probabilities hang on whom it is batched with, in training, evaluation
#   and `generate`. Batch texts of one side of the length together, or keep all of them within it.
# Seen:
#   transformers 5.5.4, torch 2.13.0; original_max_position_embeddings 32
#   a text of 20 tokens beside one of 32: log-probabilities as alone, to 2.9e-06
#   the same beside one of 33: they differ by up to 7.3
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
from transformers import Phi3Config, Phi3ForCausalLM

torch.manual_seed(0)
ORIGINAL, HALF = 32, 16  # half of a head's size of 32
model = Phi3ForCausalLM(
    Phi3Config(
        vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
        original_max_position_embeddings=ORIGINAL, initializer_range=0.2, pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": ORIGINAL,
            "short_factor": [1.0] * HALF, "long_factor": [8.0] * HALF,
        },
    )
).eval()


def beside(length):
    """Log-probabilities of a text of 20 tokens beside one of `length`, padded on the right."""
    rows, mask = torch.zeros((2, length), dtype=torch.long), torch.ones((2, length), dtype=torch.long)
    rows[0, :20], rows[1], mask[0, 20:] = torch.arange(1, 21), torch.arange(1, length + 1), 0
    with torch.no_grad():
        return model(input_ids=rows, attention_mask=mask).logits[0, :20].log_softmax(-1)


with torch.no_grad():
    alone = model(input_ids=torch.arange(1, 21)[None]).logits[0].log_softmax(-1)
near, far = (float((beside(length) - alone).abs().max()) for length in (ORIGINAL, ORIGINAL + 1))
print(
    f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}; "
    f"original_max_position_embeddings {ORIGINAL}"
)
print(f"a text of 20 tokens beside one of {ORIGINAL}: log-probabilities as alone, to {near:.2g}")
print(f"the same beside one of {ORIGINAL + 1}: they differ by up to {far:.2g}")
assert near < 1e-4, f"changed: a neighbour of {ORIGINAL} tokens changes them too"
assert far > 0.01, "changed: a longer neighbour changes nothing"
PY
