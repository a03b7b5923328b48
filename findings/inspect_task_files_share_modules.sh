#!/usr/bin/env bash
# inspect-ai 0.3.285: of two task files that each have a `rows.py` beside them, the second is asked
# the first one's questions. One process keeps one module of a name, and nothing says so.
#
# Where: _util/module.py, load_module runs a task file with its folder at the end of sys.path; what the
#   file imports goes into sys.modules and stays there for the next file. Seen with `eval([...])` and
#   with `inspect eval a/task.py b/task.py`, which load both in one process.
# Why it matters: helper modules called data.py, utils.py or prompts.py beside each task are common, and
#   the second task's score is then of the first one's data, under its own name. Run one task file a
#   process, or give helpers names that differ.
# Seen:
#   inspect-ai 0.3.285
#   a/task.py asks: What does a cow say?
#   b/task.py asks: What does a cow say?
#   b/task.py in a process of its own asks: What does a dog say?
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check inspect-ai==0.3.285
cd "$work"
export XDG_DATA_HOME="$work/data" XDG_CACHE_HOME="$work/cache"
for pair in a:cow b:dog; do
    mkdir "${pair%%:*}"
    echo "QUESTION = 'What does a ${pair##*:} say?'" >"${pair%%:*}/rows.py"
    cat >"${pair%%:*}/task.py" <<'PY'
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate
from rows import QUESTION


@task
def animals():
    return Task(dataset=[Sample(input=QUESTION, target="x")], solver=generate(), scorer=match())
PY
done
cat >ask.py <<'PY'
import sys

from inspect_ai import eval
from inspect_ai.model import ModelAPI, ModelOutput, ModelUsage, get_model, modelapi


@modelapi(name="still")
class Still(ModelAPI):
    async def generate(self, input, tools, tool_choice, config):
        output = ModelOutput.from_content(self.model_name, "x")
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return output


logs = eval(sys.argv[1:], model=get_model("still/model"), display="none", log_dir="logs")
for log in logs:
    assert log.status == "success", log.error
    print(f"{log.eval.task_file}|{log.samples[0].input}")
PY
venv/bin/python - <<'PY'
import subprocess
import sys
from importlib.metadata import version


def asked(*files):
    lines = subprocess.run(
        [sys.executable, "ask.py", *files], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return dict(line.split("|") for line in lines)


print(f"inspect-ai {version('inspect-ai')}")
both, alone = asked("a/task.py", "b/task.py"), asked("b/task.py")
for file, question in both.items():
    print(f"{file} asks: {question}")
print(f"b/task.py in a process of its own asks: {alone['b/task.py']}")
assert alone["b/task.py"] == "What does a dog say?", alone
assert both["b/task.py"] == both["a/task.py"], f"changed: b asks {both['b/task.py']!r}"
PY
