#!/usr/bin/env bash
# tinker-cookbook 0.5.8: DPO trains a comparison that is labelled "Tie" as if B were the better answer.
#
# Where: preference/dpo_datasets.py: whatever label is not "A" makes completion_B the chosen one, while
#   preference/types.py allows "A", "B" and "Tie" for it.
# Why it matters: data sets with ties (arena logs, several raters) teach the second answer of each tie, which is
#   mostly that of one and the same model or rater; no row is named and no number shows it. Drop ties before
#   training (here they are dropped, counted and listed).
# Seen:
#   tinker-cookbook 0.5.8
#   label A    chosen 'first', rejected 'second'
#   label B    chosen 'second', rejected 'first'
#   label Tie  chosen 'second', rejected 'first'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    tinker==0.38.0 tinker-cookbook==0.5.8 torch==2.13.0 transformers==5.5.4 tokenizers==0.22.2
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf"
venv/bin/python - <<'PY'
import json
from importlib.metadata import version
from pathlib import Path

from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.preference_datasets import ComparisonBuilderFromJsonl
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.tokenizer_utils import register_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

alphabet = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
raw = Tokenizer(models.BPE(alphabet, []))
raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="!")
register_tokenizer("local/bytes", lambda: tokenizer)
common = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer="local/bytes", renderer_name="role_colon", max_length=None, batch_size=1
)


def answer_of(datum):
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    text = tokenizer.decode(targets[weights > 0].tolist())
    return next(word for word in ("first", "second") if word in text)


print(f"tinker-cookbook {version('tinker-cookbook')}")
expected = {"A": "first", "B": "second", "Tie": "second"}
for label, better in expected.items():
    said = {name: [{"role": "assistant", "content": text}] for name, text in (("A", "first"), ("B", "second"))}
    comparison = {
        "prompt_conversation": [{"role": "user", "content": "q"}],
        "completion_A": said["A"],
        "completion_B": said["B"],
    }
    Path("rows.jsonl").write_text(json.dumps({"comparison": comparison, "label": label}) + "\n")
    builder = DPODatasetBuilderFromComparisons(
        common_config=common, comparison_builder=ComparisonBuilderFromJsonl(train_path="rows.jsonl")
    )
    rows, _ = builder()
    chosen, rejected = map(answer_of, rows.get_batch(0))
    print(f"label {label:4} chosen {chosen!r}, rejected {rejected!r}")
    assert chosen == better and rejected != better, f"changed: {label} trains {chosen!r} as chosen"
PY
