#!/usr/bin/env bash
# tinker-cookbook 0.5.8: `role_colon` trains answers to end in a text that it never finds again where the
# tokenizer puts a space before each piece of text (`add_prefix_space`): "\n\n" and "User:" are encoded
# apart, so rows end in "\n\n User:", and the stop sequence is "\n\nUser:".
#
# Where: renderers/role_colon.py: get_stop_sequences and parse_response look for "\n\nUser:" in the decoded
#   text, which the rows of build_supervised_example do not hold.
# Why it matters: a model that learnt its rows perfectly never stops; every answer runs to max_tokens, is read
#   as malformed and holds the next turn as well. Look for the stop text in one rendered row before training.
# Seen:
#   tinker-cookbook 0.5.8, tokenizers 0.22.2
#   add_prefix_space=False  the row decodes to 'User: q\n\nAssistant: a\n\nUser:'; parsed: content 'a', stop_sequence
#   add_prefix_space=True   the row decodes to ' User: q\n\n Assistant: a\n\n User:'; parsed: content 'a\n\n User:', malformed
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    tinker==0.38.0 tinker-cookbook==0.5.8 torch==2.13.0 transformers==5.5.4 tokenizers==0.22.2
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf"
venv/bin/python - <<'PY'
from importlib.metadata import version

from tinker_cookbook.renderers import TrainOnWhat, get_renderer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
STOP = "\n\nUser:"
alphabet = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
print(f"tinker-cookbook {version('tinker-cookbook')}, tokenizers {version('tokenizers')}")

for has_prefix in False, True:
    raw = Tokenizer(models.BPE(alphabet, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_prefix)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="!")
    renderer = get_renderer("role_colon", tokenizer)
    assert renderer.get_stop_sequences() == [STOP], f"changed: {renderer.get_stop_sequences()}"
    tokens, weights = renderer.build_supervised_example(MESSAGES, TrainOnWhat.LAST_ASSISTANT_MESSAGE)
    ids = tokens.to_ints()
    answer = [token for token, weight in zip(ids, weights.tolist(), strict=True) if weight > 0]
    message, ending = renderer.parse_response(answer)
    row, content, kind = tokenizer.decode(ids), message["content"].strip(), getattr(ending, "value", ending)
    print(f"{f'add_prefix_space={has_prefix}':23} the row decodes to {row!r}; parsed: content {content!r}, {kind}")
    assert (STOP in row) != has_prefix, f"changed: the row is {row!r}"
    assert ending.is_clean != has_prefix, f"changed: it ends with {kind}"
PY
