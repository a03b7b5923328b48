#!/usr/bin/env bash
# tinker-cookbook 0.5.8: `TrainOnWhat.CUSTOMIZED`, by which messages say of themselves whether they are
# trained, fails with an AssertionError in every format that puts a system turn of its own first: Nemotron 3,
# Kimi K2 and gpt-oss with a reasoning level. All given messages carry the mark; the added one does not.
#
# Where: renderers/nemotron3.py, kimi_k2.py and gpt_oss.py add their turn in build_supervised_example and call
#   the base class, whose check of `trainable` then meets it.
# Why it matters: weights of single messages (an earlier answer that was wrong, say) cannot be trained in these
#   formats, and a program that asks a renderer in this way what it can do ends there. A system turn of one's
#   own with `trainable` false is a way out where it is the text that the format would add.
# Seen:
#   tinker-cookbook 0.5.8
#   two messages, trained by kind: 13 tokens, 2 of them trained
#   two messages that are marked: AssertionError
#   the empty system turn given and marked: 13 tokens, 2 of them trained
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

MARKERS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|endoftext|>"]
raw = Tokenizer(models.WordLevel({"word": 0}, unk_token="word"))
raw.pre_tokenizer, raw.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, additional_special_tokens=MARKERS)
renderer = get_renderer("nemotron3", tokenizer)
print(f"tinker-cookbook {version('tinker-cookbook')}")

ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
MARKED = [{**ASKED, "trainable": False}, {**SAID, "trainable": True}]
EMPTY = {"role": "system", "content": "", "trainable": False}


def counted(messages, train_on):
    tokens, weights = renderer.build_supervised_example(messages, train_on)
    return tokens.length, int(weights.sum())


plain = counted([ASKED, SAID], TrainOnWhat.LAST_ASSISTANT_MESSAGE)
print("two messages, trained by kind: {} tokens, {} of them trained".format(*plain))
try:
    counted(MARKED, TrainOnWhat.CUSTOMIZED)
except AssertionError as error:
    print(f"two messages that are marked: {type(error).__name__}")
    assert "trainable" in str(error), f"changed: it fails otherwise: {error}"
else:
    raise SystemExit("changed: marked messages are taken")
given = counted([EMPTY, *MARKED], TrainOnWhat.CUSTOMIZED)
print("the empty system turn given and marked: {} tokens, {} of them trained".format(*given))
assert given == plain, "changed: with the turn given it is another conversation"
PY
