#!/usr/bin/env bash
# llama.cpp (xllamacpp 2026.10.11549): a model with an unembedding of its own whose file lacks
# `output.weight` is loaded without an error, and answers with the embedding in its place.
#
# Where: the loaders below src/ (llama, qwen2, qwen3 and others) do not require `output.weight`, and
#   take `token_embd.weight` a second time where it is missing; no key says whether a model is tied.
# Why it matters: an untied model, or one whose head was trained, converted by a rule for tied ones
#   loads everywhere and answers nonsense of the right form. A converter has to go by the tensors and not
#   by the name of the family, and to compare log-probabilities after loading.
# Seen (the largest difference of a log-probability):
#   llama.cpp in xllamacpp 2026.10.11549, gguf 0.19.0
#   output.weight left out: 6.3 from the model, 0 from the model with its embedding as output.weight
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
from tiny_gguf import next_logprobs, random_tensors, serve, write_model

print("llama.cpp in xllamacpp " + version("xllamacpp") + ", gguf " + version("gguf"))
PROMPT = [40, 41, 42, 43, 44]
tensors = random_tensors()
left_out = {name: values for name, values in tensors.items() if name != "output.weight"}
files = {
    "whole": tensors, "left_out": left_out, "tied": tensors | {"output.weight": tensors["token_embd.weight"]},
}
found = {}
for name, values in files.items():
    write_model(f"{name}.gguf", values)
    found[name] = next_logprobs(serve(f"{name}.gguf"), PROMPT)
from_whole, from_tied = (float(np.abs(found["left_out"] - found[other]).max()) for other in ("whole", "tied"))
print(
    f"output.weight left out: {from_whole:.2g} from the model, {from_tied:.2g} from the model with its "
    "embedding as output.weight"
)
assert from_whole > 1, "changed: it answers as the whole model does"
assert from_tied < 1e-5, "changed: it does not answer with the embedding"
PY
