#!/usr/bin/env bash
# inspect-ai 0.3.285: one sample whose score has another form than the others' fails the whole task. All
# samples are asked and scored, and then there are no results and the status is "error".
#
# Where: _eval/task/results.py raises TypeError "A dictionary of metrics specified for a non-dictionary
#   score" when it computes the metrics; `fail_on_error=False` and `continue_on_fail` are of samples and do
#   not apply. NaN at the root of such a score is left out; a plain number is not.
# Why it matters: a scorer that gives {"exact": ..., "f1": ...} and on one path a plain 0 costs the whole
#   evaluation after it was paid for, and `inspect score` or a retry, which asks nothing again, ends the
#   same way. The scores of the other samples stand in the log; read them from there.
# Seen:
#   inspect-ai 0.3.285
#   4 scores of one form:          status success, 4 samples scored, results: exact, f1
#   1 of 4 is a plain number:      status error, 4 samples scored, results: none
#   1 of 4 is NaN:                 status success, 4 samples scored, results: exact, f1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check inspect-ai==0.3.285
cd "$work"
export XDG_DATA_HOME="$work/data" XDG_CACHE_HOME="$work/cache"
venv/bin/python - <<'PY'
import math
from importlib.metadata import version

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelAPI, ModelOutput, ModelUsage, get_model, modelapi
from inspect_ai.scorer import Score, mean, scorer
from inspect_ai.solver import generate


@modelapi(name="still")
class Still(ModelAPI):
    async def generate(self, input, tools, tool_choice, config):
        output = ModelOutput.from_content(self.model_name, "x")
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return output


@scorer(metrics={"exact": [mean()], "f1": [mean()]})
def overlap(of_first):
    async def score(state, target):
        is_first = state.sample_id == 1
        return Score(value=of_first if is_first else {"exact": 1, "f1": 1})

    return score


print(f"inspect-ai {version('inspect-ai')}")
for label, value, expected in (
    ("4 scores of one form:", {"exact": 0, "f1": 0}, "success"),
    ("1 of 4 is a plain number:", 0, "error"),
    ("1 of 4 is NaN:", math.nan, "success"),
):
    samples = [Sample(id=i, input="?", target="x") for i in range(1, 5)]
    task = Task(dataset=samples, solver=generate(), scorer=overlap(value))
    (log,) = eval(
        task, model=get_model("still/model"), display="none", log_dir="logs", fail_on_error=False
    )
    scored = sum(bool(sample.scores) for sample in log.samples)
    names = ", ".join(one.name for one in log.results.scores) if log.results else "none"
    print(f"{label:30} status {log.status}, {scored} samples scored, results: {names}")
    assert scored == 4, f"changed: {scored} samples are scored"
    assert log.status == expected, f"changed: {label} {log.status}"
PY
