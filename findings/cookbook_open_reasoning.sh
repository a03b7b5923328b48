#!/usr/bin/env bash
# tinker-cookbook 0.5.8: in formats whose prompt opens the reasoning itself (Nemotron 3, Qwen3.5, Kimi
# K2.5), an answer that ends without closing it is given as plain content, with a clean ending: nothing
# tells it from an answer without reasoning.
#
# Where: renderers/nemotron3.py, qwen3_5.py and kimi_k25.py put `<think>` into the prompt; parse_response
#   splits at `</think>` alone and reads what comes without one as content.
# Why it matters: a grader that takes the last number of an answer scores the middle of a thought, and a
#   stream shows a thought as the answer until its end comes. Where the prompt ends with `<think>`, an
#   answer without `</think>` is all reasoning.
# Seen:
#   tinker-cookbook 0.5.8
#   qwen3      the prompt does not open the reasoning
#   nemotron3  the prompt ends with <think>; parsed: content 'maybe the answer is 7', stop_sequence
#   qwen3_5    the prompt ends with <think>; parsed: content 'maybe the answer is 7', stop_sequence
#   kimi_k25   the prompt ends with <think>; parsed: content 'maybe the answer is 7', stop_sequence
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

from tinker_cookbook.renderers import get_renderer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

THOUGHT = "maybe the answer is 7"
MARKERS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|endoftext|>"]
WORDS = ["?", "user", "assistant", "q", *THOUGHT.split()]
raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
raw.pre_tokenizer = pre_tokenizers.Whitespace()
raw.decoder = decoders.WordPiece(prefix="##", cleanup=False)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, additional_special_tokens=MARKERS)
answer = tokenizer.encode(f"{THOUGHT} <|im_end|>", add_special_tokens=False)
print(f"tinker-cookbook {version('tinker-cookbook')}")

for name in "qwen3", "nemotron3", "qwen3_5", "kimi_k25":
    renderer = get_renderer(name, tokenizer)
    prompt = renderer.build_generation_prompt([{"role": "user", "content": "q"}]).to_ints()
    opens = "<think>" in tokenizer.decode(prompt)
    assert opens == (name != "qwen3"), f"changed: the prompt of {name} opens reasoning: {opens}"
    if not opens:
        print(f"{name:10} the prompt does not open the reasoning")
        continue
    message, ending = renderer.parse_response(answer)
    content, kind = message["content"], getattr(ending, "value", ending)
    print(f"{name:10} the prompt ends with <think>; parsed: content {content!r}, {kind}")
    assert isinstance(content, str) and content.strip() == THOUGHT, f"changed: {content!r}"
    assert ending.is_clean, f"changed: it ends with {kind}"
PY
