#!/usr/bin/env bash
# llama.cpp (xllamacpp 2026.10.11549): a LoRA adapter whose `adapter.lora.alpha` is missing or 0 is
# applied in full, with scale 1, and not with alpha / rank, nor left out; nothing is said of it.
#
# Where: src/llama-adapter.h, llama_adapter_lora_weight::get_scale divides by the rank only where alpha
#   is not 0, and a key that is missing is read as 0.
# Why it matters: a converter that forgets the key serves an update of rank / alpha times its size, half
#   of it at Tinker's alpha 32 and rank 16, and the answers look plausible. An adapter that was switched
#   off by alpha 0 comes back at full size. Write the key, refuse 0, and compare log-probabilities.
# Seen (rank 4; the largest difference of a log-probability from each expectation):
#   llama.cpp in xllamacpp 2026.10.11549, gguf 0.19.0
#   alpha 8:       from scale 2: 3.4e-06,  from scale 1: 11
#   alpha 4:       from scale 1: 1.2e-06
#   alpha 0:       from scale 1: 1.2e-06,  from scale 0 (the base model): 8.1
#   alpha missing: from scale 1: 1.2e-06
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    gguf==0.19.0 xllamacpp==2026.10.11549 numpy==2.4.6
cp "$here/tiny_gguf.py" "$work"
cd "$work"
PYTHONPATH="$work" venv/bin/python - <<'PY'
from importlib.metadata import version

import numpy as np
from tiny_gguf import (
    NUM_TOKENS, WIDTH, next_logprobs, random_tensors, serve, write_adapter, write_model,
)

print("llama.cpp in xllamacpp " + version("xllamacpp") + ", gguf " + version("gguf"))
RANK, HEAD, PROMPT = 4, "output.weight", [40, 41, 42, 43, 44]
chance = np.random.default_rng(1)
a = chance.normal(0, 0.3, (RANK, WIDTH)).astype(np.float32)
b = chance.normal(0, 0.3, (NUM_TOKENS, RANK)).astype(np.float32)
tensors = random_tensors()
write_model("base.gguf", tensors)


def merged(scale):
    write_model("merged.gguf", tensors | {HEAD: (tensors[HEAD] + scale * (b @ a)).astype(np.float32)})
    return next_logprobs(serve("merged.gguf"), PROMPT)


def adapted(alpha):
    write_adapter("adapter.gguf", {f"{HEAD}.lora_a": a, f"{HEAD}.lora_b": b}, alpha)
    return next_logprobs(serve("base.gguf", "adapter.gguf"), PROMPT)


def gap(alpha, scale):
    return float(np.abs(adapted(alpha) - merged(scale)).max())


double, as_one = gap(8.0, 2.0), gap(8.0, 1.0)
print(f"alpha 8:       from scale 2: {double:.2g},  from scale 1: {as_one:.2g}")
equal, zero, off, missing = gap(4.0, 1.0), gap(0.0, 1.0), gap(0.0, 0.0), gap(None, 1.0)
print(f"alpha 4:       from scale 1: {equal:.2g}")
print(f"alpha 0:       from scale 1: {zero:.2g},  from scale 0 (the base model): {off:.2g}")
print(f"alpha missing: from scale 1: {missing:.2g}")
assert max(double, equal) < 1e-4 < 1 < as_one, "changed: alpha / rank is not the scale where alpha is given"
assert zero < 1e-4 < 1 < off, "changed: alpha 0 is not applied with scale 1"
assert missing < 1e-4, "changed: a missing alpha is not applied with scale 1"
PY
