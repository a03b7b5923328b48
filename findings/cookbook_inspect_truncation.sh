#!/usr/bin/env bash
# tinker-cookbook 0.5.8 with inspect-ai 0.3.285: the cookbook's Inspect bridge reports stop_reason
# "stop" for an answer that Tinker ended at the token limit ("length"), so no log shows truncation.
#
# Where: tinker_cookbook/eval/inspect_utils.py, InspectAPIFromTinkerSampling.generate writes
#   `stop_reason="stop"` into every choice and never reads SampledSequence.stop_reason. Inspect's own
#   word for it is "max_tokens".
# Why it matters: a model that was cut off at max_tokens looks like one that answers wrongly, and a
#   larger limit is never tried. Take the reason from the sampled sequences, or compare
#   usage.output_tokens with the limit.
# Seen:
#   tinker-cookbook 0.5.8, inspect-ai 0.3.285, tinker 0.38.0
#   Tinker's result: 3 tokens of at most 3, stop_reason 'length'
#   Inspect's log:   3 output tokens, stop_reason 'stop', status success
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    tinker-cookbook==0.5.8 tinker==0.38.0 inspect-ai==0.3.285 torch==2.13.0 transformers==5.5.4 \
    tokenizers==0.22.2 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" XDG_DATA_HOME="$work/data" XDG_CACHE_HOME="$work/cache"
venv/bin/python - <<'PY'
from importlib.metadata import version

import tinker
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, Model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate
from tinker_cookbook import tokenizer_utils
from tinker_cookbook.eval.inspect_utils import InspectAPIFromTinkerSampling
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# A tokenizer of single bytes, so that nothing is downloaded.
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
made = Tokenizer(models.BPE(vocab={one: index for index, one in enumerate(alphabet)}, merges=[]))
made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
made.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
tokenizer_utils.register_tokenizer("tiny/bytes", lambda: tokenizer)
sampled = []


class Sampler:
    """Stands for tinker.SamplingClient: an answer that is longer than the limit, cut as Tinker does."""

    async def sample_async(self, prompt, sampling_params, num_samples):
        tokens = tokenizer.encode("The answer is 5.", add_special_tokens=False)
        sequence = tinker.SampledSequence(
            stop_reason="length", sequence_id="1", _tokens_list=tokens[: sampling_params.max_tokens]
        )
        sampled.append((sequence, sampling_params))
        return tinker.SampleResponse(sequences=[sequence])


api = InspectAPIFromTinkerSampling(
    renderer_name="role_colon", model_name="tiny/bytes", sampling_client=Sampler()
)
task = Task(dataset=[Sample(id=1, input="2 + 3?", target="5")], solver=generate(), scorer=includes())
log = eval(
    task, model=Model(api=api, config=GenerateConfig(max_tokens=3)), display="none", log_dir="logs"
)[0]
assert log.status == "success", log.error
output = log.samples[0].output
sequence, params = sampled[0]
names = ("tinker-cookbook", "inspect-ai", "tinker")
print(", ".join(f"{name} {version(name)}" for name in names))
print(
    f"Tinker's result: {len(sequence.tokens)} tokens of at most {params.max_tokens}, "
    f"stop_reason {sequence.stop_reason!r}"
)
print(
    f"Inspect's log:   {output.usage.output_tokens} output tokens, stop_reason {output.stop_reason!r}, "
    f"status {log.status}"
)
assert output.usage.output_tokens == params.max_tokens == 3, "changed: the limit is not passed on"
assert output.stop_reason == "stop", f"changed: the bridge reports {output.stop_reason!r}"
PY
