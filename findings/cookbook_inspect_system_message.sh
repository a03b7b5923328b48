#!/usr/bin/env bash
# tinker-cookbook 0.5.8 with inspect-ai 0.3.285: a system message that is given as a setting
# (GenerateConfig, `--system-message`) stands twice in the prompt.
#
# Where: inspect_ai/model/_model.py, Model.generate puts config.system_message before the messages and
#   passes the config on to the provider with it; tinker_cookbook/eval/inspect_utils.py,
#   InspectAPIFromTinkerSampling.generate puts it there once more.
# Why it matters: the model is asked with a prompt that it was never trained on, and a system message of
#   2,000 tokens costs 4,000 a sample; the log shows it once, since Inspect records its own messages. Give
#   it as the solver `system_message(...)`, which is not doubled.
# Seen:
#   tinker-cookbook 0.5.8, inspect-ai 0.3.285
#   as a solver:     Inspect's messages hold it once, the prompt holds it once
#   as a setting:    Inspect's messages hold it once, the prompt holds it twice
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
from inspect_ai.solver import generate, system_message
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
prompts = []


class Sampler:
    """Stands for tinker.SamplingClient, and keeps the prompt that it is given."""

    async def sample_async(self, prompt, sampling_params, num_samples):
        prompts.append(tokenizer.decode(prompt.to_ints()))
        tokens = tokenizer.encode("5", add_special_tokens=False)
        sequence = tinker.SampledSequence(stop_reason="stop", sequence_id="1", _tokens_list=tokens)
        return tinker.SampleResponse(sequences=[sequence])


api = InspectAPIFromTinkerSampling(
    renderer_name="role_colon", model_name="tiny/bytes", sampling_client=Sampler()
)
TEXT = "Answer with one number."
print(", ".join(f"{name} {version(name)}" for name in ("tinker-cookbook", "inspect-ai")))
for label, solver, config, expected in (
    ("as a solver:", [system_message(TEXT), generate()], GenerateConfig(), 1),
    ("as a setting:", generate(), GenerateConfig(system_message=TEXT), 2),
):
    task = Task(
        dataset=[Sample(id=1, input="2 + 3?", target="5")],
        solver=solver, scorer=includes(), config=config,
    )
    (log,) = eval(task, model=Model(api=api, config=GenerateConfig()), display="none", log_dir="logs")
    assert log.status == "success", log.error
    event = next(one for one in log.samples[0].events if one.event == "model")
    in_log = sum(TEXT in message.text for message in event.input)
    in_prompt = prompts[-1].count(TEXT)
    words = {1: "once", 2: "twice"}
    print(
        f"{label:16} Inspect's messages hold it {words[in_log]}, the prompt holds it {words[in_prompt]}"
    )
    assert in_log == 1, f"changed: the log holds it {in_log} times"
    assert in_prompt == expected, f"changed: the prompt holds it {in_prompt} times"
PY
