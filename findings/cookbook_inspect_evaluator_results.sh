#!/usr/bin/env bash
# tinker-cookbook 0.5.8 with inspect-ai 0.3.285: InspectEvaluator gives back the metrics of a task's first scorer
# alone, and of a task whose dataset has no name nothing: it raises TypeError once all samples have been asked.
#
# Where: tinker_cookbook/eval/inspect_evaluators.py, InspectEvaluator.__call__ reads `results.scores[0]` and makes each
#   name as `eval.dataset.name + "/" + metric`; Inspect's dataset name is None for a list of samples.
# Why it matters: a task with two scorers (right answer, right form) looks as if it had one, and which one follows from
#   their order. A task over samples written in its file, as small ones of an application's own are, costs all its
#   samples and ends in an error. Both scores stand in Inspect's log, which is written before; read them from there, or
#   give the dataset a name (MemoryDataset(samples, name=...)).
# Seen:
#   tinker-cookbook 0.5.8, inspect-ai 0.3.285, tinker 0.38.0
#   named dataset: scorers in the log includes, match; given back {'named/accuracy': 1.0, 'named/stderr': 0.0}
#   a list of samples: TypeError after 1 of 1 samples; in the log includes 1.0, match 0.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check \
    tinker-cookbook==0.5.8 tinker==0.38.0 inspect-ai==0.3.285 torch==2.13.0 transformers==5.5.4 \
    tokenizers==0.22.2 numpy==2.4.6
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" XDG_DATA_HOME="$work/data" XDG_CACHE_HOME="$work/cache"
venv/bin/python - <<'PY' 2>errors.txt || { cat errors.txt; exit 1; }
import asyncio
import io
from contextlib import redirect_stdout
from importlib.metadata import version

import tinker
from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import list_eval_logs, read_eval_log
from inspect_ai.scorer import includes, match
from inspect_ai.solver import generate
from tinker_cookbook import tokenizer_utils
from tinker_cookbook.eval.inspect_evaluators import InspectEvaluatorBuilder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# A tokenizer of single bytes, so that nothing is downloaded.
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
made = Tokenizer(models.BPE(vocab={one: index for index, one in enumerate(alphabet)}, merges=[]))
made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
made.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
tokenizer_utils.register_tokenizer("tiny/bytes", lambda: tokenizer)


class Sampler:
    """Stands for tinker.SamplingClient: always the same answer, which holds the right one first."""

    num_asked = 0

    async def sample_async(self, prompt, sampling_params, num_samples):
        self.num_asked += 1
        tokens = tokenizer.encode("5 is what it comes to\n\nUser:", add_special_tokens=False)
        sequence = tinker.SampledSequence(stop_reason="stop", sequence_id="1", _tokens_list=tokens)
        return tinker.SampleResponse(sequences=[sequence])


def evaluated(dataset, folder):
    """What the evaluator gives back or raises, what its log has of each scorer, and how many asked."""
    task = Task(dataset=dataset, solver=generate(), scorer=[includes(), match(location="end")])
    builder = InspectEvaluatorBuilder(
        tasks=[task], renderer_name="role_colon", model_name="tiny/bytes", log_dir=folder,
        max_tokens=32, temperature=0.0,
    )
    sampler = Sampler()
    try:
        with redirect_stdout(io.StringIO()):  # Inspect's display
            given = asyncio.run(builder()(sampler))
    except TypeError as error:
        given = error
    log = read_eval_log(list_eval_logs(folder)[0])
    scores = {one.name: one.metrics["accuracy"].value for one in log.results.scores}
    return given, scores, sampler.num_asked


samples = [Sample(id=1, input="2 + 3?", target="5")]
names = ("tinker-cookbook", "inspect-ai", "tinker")
print(", ".join(f"{name} {version(name)}" for name in names))
given, scores, _ = evaluated(MemoryDataset(samples, name="named"), "named")
print(f"named dataset: scorers in the log {', '.join(scores)}; given back {given}")
assert list(scores) == ["includes", "match"] and scores == {"includes": 1.0, "match": 0.0}, scores
assert given == {"named/accuracy": 1.0, "named/stderr": 0.0}, f"changed: {given}"
given, scores, num_asked = evaluated(samples, "unnamed")
shown = ", ".join(f"{name} {score}" for name, score in scores.items())
print(f"a list of samples: {type(given).__name__} after {num_asked} of 1 samples; in the log {shown}")
assert isinstance(given, TypeError) and num_asked == 1, f"changed: {given}"
PY
