#!/usr/bin/env bash
# inspect-ai 0.3.285: to look at `log.samples` of a log that `eval_async` returned replaces asyncio's
# tasks and futures by their pure Python versions, for all of the process and for good.
#
# Where: log/_recorders/eval.py, LazyList reads the file when it is first looked at, with the synchronous
#   read_eval_log; inside a running loop _util/_async.py, run_coroutine, then calls nest_asyncio2.apply(),
#   which sets asyncio.Task and asyncio.Future to _PyTask and _PyFuture and never sets them back.
# Why it matters: an application that evaluates between other work (training, serving) runs its event
#   loops slower from the first evaluation on. `await read_eval_log_async(log.location)` reads the same
#   samples and changes nothing.
# Seen (seconds vary):
#   inspect-ai 0.3.285
#   before:                          asyncio.Task is C
#   after eval_async:                asyncio.Task is C
#   after read_eval_log_async:       asyncio.Task is C, 1 sample
#   after len(log.samples):          1 sample, asyncio.Task is Python
#   100,000 tasks take 1.2 times as long as before
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check inspect-ai==0.3.285
cd "$work"
export XDG_DATA_HOME="$work/data" XDG_CACHE_HOME="$work/cache"
venv/bin/python - <<'PY'
import asyncio
import time
from importlib.metadata import version

from inspect_ai import Task, eval_async
from inspect_ai.dataset import Sample
from inspect_ai.log import read_eval_log_async
from inspect_ai.model import ModelAPI, ModelOutput, ModelUsage, get_model, modelapi
from inspect_ai.scorer import match
from inspect_ai.solver import generate
from inspect_ai.util._display import init_display_type

init_display_type("none")


@modelapi(name="still")
class Still(ModelAPI):
    async def generate(self, input, tools, tool_choice, config):
        output = ModelOutput.from_content(self.model_name, "x")
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return output


def kind():
    return "Python" if asyncio.Task is asyncio.tasks._PyTask else "C"


async def many_tasks():
    async def nothing():
        pass

    began = time.process_time()
    for _ in range(100):
        await asyncio.gather(*(nothing() for _ in range(1000)))
    return time.process_time() - began


async def main():
    print(f"inspect-ai {version('inspect-ai')}")
    print(f"before:                          asyncio.Task is {kind()}")
    task = Task(dataset=[Sample(input="?", target="x")], solver=generate(), scorer=match())
    (log,) = await eval_async(task, model=get_model("still/model"), log_dir="logs")
    assert log.status == "success", log.error
    print(f"after eval_async:                asyncio.Task is {kind()}")
    read = await read_eval_log_async(log.location)
    print(f"after read_eval_log_async:       asyncio.Task is {kind()}, {len(read.samples)} sample")
    assert kind() == "C", f"changed: it is {kind()} already"
    return log, await many_tasks()


async def look(log):
    print(f"after len(log.samples):          {len(log.samples)} sample, asyncio.Task is {kind()}")


log, before = asyncio.run(main())
asyncio.run(look(log))
assert kind() == "Python", "changed: asyncio keeps its C tasks"
after = asyncio.run(many_tasks())
print(f"100,000 tasks take {after / before:.1f} times as long as before")
PY
