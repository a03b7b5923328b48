#!/usr/bin/env bash
# transformers 5.5.4: AutoTokenizer drops all spaces and line feeds of a byte-level tokenizer whose
# folder says `model_type: llama` and `tokenizer_class: LlamaTokenizerFast` (as those of several
# DeepSeek models do): it builds LlamaTokenizer, which ignores what tokenizer.json says of spaces.
#
# Where: models/llama/tokenization_llama.py sets a Metaspace pre-tokenizer in __init__, whatever the
#   file holds; open issues huggingface/transformers#45488 and #48206. No warning, no error.
# Why it matters: prompts are trained, sampled and graded without spaces, and scores fall for no reason
#   that any log shows. Encode and decode one sentence before the first step; load such a folder with
#   PreTrainedTokenizerFast.
# Seen:
#   transformers 5.5.4, tokenizers 0.22.2; the file's pre-tokenizer: ByteLevel
#   AutoTokenizer           -> LlamaTokenizer     Metaspace  'WhatisthecapitalofFrance?75kmok'
#   PreTrainedTokenizerFast -> TokenizersBackend  ByteLevel  'What is the capital of France?\n75 km\nok'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    transformers==5.5.4 tokenizers==0.22.2
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf"
venv/bin/python - <<'PY'
import json
from pathlib import Path

import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TEXT = "What is the capital of France?\n75 km\nok"
folder = Path("model")
folder.mkdir()
made = Tokenizer(models.BPE())
made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
made.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
made.train_from_iterator([TEXT], trainer)
made.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast"}))
(folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
assert made.decode(made.encode(TEXT).ids) == TEXT, "the tokenizer itself is not right"

print(
    f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}; "
    f"the file's pre-tokenizer: {type(made.pre_tokenizer).__name__}"
)
back = {}
for name, loader in ("AutoTokenizer", AutoTokenizer), ("PreTrainedTokenizerFast", PreTrainedTokenizerFast):
    loaded = loader.from_pretrained(folder)
    kind = type(loaded.backend_tokenizer.pre_tokenizer).__name__
    back[name] = loaded.decode(loaded.encode(TEXT, add_special_tokens=False))
    print(f"{name:23} -> {type(loaded).__name__:18} {kind:10} {back[name]!r}")
lost = "".join(TEXT.split())
assert back["PreTrainedTokenizerFast"] == TEXT, "changed: PreTrainedTokenizerFast no longer reads the file as it is"
assert back["AutoTokenizer"] == lost, f"changed: AutoTokenizer gives {back['AutoTokenizer']!r} back"
PY
