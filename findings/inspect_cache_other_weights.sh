#!/usr/bin/env bash
# inspect-ai 0.3.285: the response cache answers for other weights. Its key has the model's name and
# base URL, not its model args, so two checkpoints under one name share answers and scores.
#
# Where: documented at https://inspect.aisi.org.uk/caching.html ("Model name and base URL"); source
#   model/_cache.py, _cache_key and _cache_entry_path. That model args are left out is not said there.
# Why it matters: every round of a fine-tuning loop has the same model name and other weights (the
#   Tinker cookbook's bridge takes the weights as the arg `model_path` or `sampling_client`). A task
#   with `cache=True` then shows the first round's score for ever. Put the checkpoint into the name, or
#   give each one a `CachePolicy(scopes={"weights": ...})`.
# Seen:
#   inspect-ai 0.3.285
#   cache=False             round_1 0.0, round_2 1.0; asked: round_1, round_2
#   cache=True              round_1 0.0, round_2 0.0; asked: round_1
#   cache with scopes       round_1 0.0, round_2 1.0; asked: round_1, round_2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check inspect-ai==0.3.285
cd "$work"
export XDG_DATA_HOME="$work/data" XDG_CACHE_HOME="$work/cache"
venv/bin/python - <<'PY'
from importlib.metadata import version

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import CachePolicy, ModelAPI, ModelOutput, ModelUsage, get_model, modelapi
from inspect_ai.scorer import accuracy, match
from inspect_ai.solver import generate

asked = []


@modelapi(name="tuned")
class Tuned(ModelAPI):
    """Answers from the weights that it was given; only those of round 2 know the answer."""

    def __init__(self, model_name, base_url=None, api_key=None, config=None, weights=""):
        super().__init__(model_name, base_url, api_key, [], config)
        self.weights = weights

    async def generate(self, input, tools, tool_choice, config):
        asked.append(self.weights)
        output = ModelOutput.from_content(self.model_name, "5" if self.weights == "round_2" else "4")
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return output


def score(weights, cache):
    task = Task(
        dataset=[Sample(id=1, input="What is 2 + 3?", target="5")],
        solver=generate(cache=cache), scorer=match(), metrics=[accuracy()], name="sums",
    )
    model = get_model("tuned/llama", weights=weights, memoize=False)
    log = eval(task, model=model, display="none", log_dir="logs")[0]
    assert log.status == "success", log.error
    return log.results.scores[0].metrics["accuracy"].value


print(f"inspect-ai {version('inspect-ai')}")
for label, cache_of, expected in (
    ("cache=False", lambda weights: False, [0.0, 1.0]),
    ("cache=True", lambda weights: True, [0.0, 0.0]),
    ("cache with scopes", lambda weights: CachePolicy(scopes={"weights": weights}), [0.0, 1.0]),
):
    asked.clear()
    got = [score(weights, cache_of(weights)) for weights in ("round_1", "round_2")]
    print(f"{label:23} round_1 {got[0]}, round_2 {got[1]}; asked: {', '.join(asked)}")
    assert got == expected, f"changed: {label} gives {got}, not {expected}"
PY
