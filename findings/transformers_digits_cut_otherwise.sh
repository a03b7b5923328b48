#!/usr/bin/env bash
# transformers 5.5.4: AutoTokenizer cuts numbers otherwise than tokenizer.json says where the folder
# calls its class GPT2Tokenizer, Qwen2Tokenizer or GPTNeoXTokenizer: those classes put a pre-tokenizer
# of their own in the place of the file's. Every text is read back right, so no round trip tells it.
#
# Where: the __init__ of models/gpt2/tokenization_gpt2.py, models/qwen2/tokenization_qwen2.py and
#   models/gpt_neox/tokenization_gpt_neox.py sets `pre_tokenizer`, whatever the file holds. No warning.
# Why it matters: a model that learnt "1969" as 196|9 is trained and asked with 1969 or 1|9|6|9, tokens
#   that it seldom or never saw; nothing shows but a worse score. Compare the ids of a few texts with
#   those of PreTrainedTokenizerFast, which reads the file as it is.
# Seen:
#   transformers 5.5.4, tokenizers 0.22.2; the file cuts after three digits
#   as tokenizer.json says  paid|Ġin|Ġ|196|9
#   GPT2Tokenizer           paid|Ġin|Ġ1969         read back: same text
#   Qwen2Tokenizer          paid|Ġin|Ġ|1|9|6|9     read back: same text
#   GPTNeoXTokenizer        paid|Ġin|Ġ1969         read back: same text
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
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

transformers.logging.set_verbosity_error()
TEXT = "paid in 1969"
folder = Path("model")
folder.mkdir()
made = Tokenizer(models.BPE())
made.pre_tokenizer = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
made.decoder = decoders.ByteLevel()
# Both ways of cutting 1969 get their tokens below, so that the rule alone decides.
trainer = trainers.BpeTrainer(
    vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
)
made.train_from_iterator([TEXT] * 9, trainer)
state = json.loads(made.to_str())
vocab, merges = state["model"]["vocab"], state["model"]["merges"]
for left, right in [("1", "9"), ("19", "6"), ("196", "9"), ("Ġ", "1969")]:
    if [left, right] not in merges:
        merges.append([left, right])
    vocab.setdefault(left + right, len(vocab))
made = Tokenizer.from_str(json.dumps(state))
made.save(str(folder / "tokenizer.json"))
(folder / "config.json").write_text(json.dumps({"model_type": "llama"}))

print(
    f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}; "
    "the file cuts after three digits"
)
own = PreTrainedTokenizerFast.from_pretrained(folder).tokenize(TEXT)
assert own == made.encode(TEXT).tokens and own[-2:] == ["196", "9"], f"changed: the file gives {own}"
print(f"{'as tokenizer.json says':23} {'|'.join(own)}")
for name in "GPT2Tokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer":
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    loaded = AutoTokenizer.from_pretrained(folder)
    cut = loaded.tokenize(TEXT)
    back = loaded.decode(loaded.encode(TEXT, add_special_tokens=False))
    assert type(loaded).__name__ == name, f"changed: {name} is read as {type(loaded).__name__}"
    assert back == TEXT, f"changed: {name} reads the text back as {back!r}"
    assert cut != own, f"changed: {name} cuts as the file says"
    print(f"{name:23} {'|'.join(cut):22} read back: same text")
PY
