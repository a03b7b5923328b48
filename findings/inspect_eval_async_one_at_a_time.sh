#!/usr/bin/env bash
# inspect-ai 0.3.285: of two `eval_async` calls at once in a process the second raises RuntimeError, also with
# other models and tasks, and also in another thread with an event loop of its own.
#
# Where: _eval/eval.py, a global flag of the process (`_eval_async_running`), set by the call and read by the
#   next; the comment beside it says that its first reason is gone. The docstring does not name the limit.
#   UKGovernmentBEIS/inspect_ai#4411, a closed pull request, shows what global state stands in the way.
# Why it matters: evaluations whose models become ready at different times (checkpoints of several trainings,
#   trials side by side) have to take turns under a lock, however much the service could take. One call with a
#   list of models runs them together, where all are known when it begins; or use a process for each.
# Seen:
#   inspect-ai 0.3.285
#   one after the other   mockllm/a success; mockllm/b success
#   at once, one loop     mockllm/a success; RuntimeError: Multiple concurrent calls to eval_async are not allowed.
#   at once, two threads  mockllm/a success; RuntimeError: Multiple concurrent calls to eval_async are not allowed.
#   one call, two models  mockllm/a success, mockllm/b success
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check inspect-ai==0.3.285
cd "$work"
export XDG_DATA_HOME="$work/data" XDG_CACHE_HOME="$work/cache"
venv/bin/python - <<'PY'
import asyncio
from importlib.metadata import version

from inspect_ai import Task, eval_async
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import match
from inspect_ai.solver import generate
from inspect_ai.util._display import init_display_type

init_display_type("none")


def model(name):
    def answer(input, tools, tool_choice, config):
        output = ModelOutput.from_content(name, "x")
        # Without a usage mockllm counts tokens, and downloads a tokenizer for it.
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return output

    return get_model(f"mockllm/{name}", custom_outputs=answer)


async def evaluate(*names):
    task = Task(dataset=[Sample(input="?", target="x")], solver=generate(), scorer=match())
    return await eval_async(task, model=[model(name) for name in names], log_dir=f"logs_{names[0]}")


async def in_a_thread(name):
    return await asyncio.to_thread(lambda: asyncio.run(evaluate(name)))


async def two(call):
    return await asyncio.gather(call("a"), call("b"), return_exceptions=True)


def told(outcome):
    if isinstance(outcome, BaseException):
        return f"{type(outcome).__name__}: {outcome}"
    return ", ".join(f"{log.eval.model} {log.status}" for log in outcome)


async def main():
    print(f"inspect-ai {version('inspect-ai')}")
    outcomes = {
        "one after the other": [await evaluate("a"), await evaluate("b")],
        "at once, one loop": await two(evaluate),
        "at once, two threads": await two(in_a_thread),
        "one call, two models": [await evaluate("a", "b")],
    }
    for case, each in outcomes.items():
        print(f"{case:22}{'; '.join(told(outcome) for outcome in each)}")
    for case, each in outcomes.items():
        num_raised = sum(isinstance(outcome, RuntimeError) for outcome in each)
        assert num_raised == case.startswith("at once"), f"changed: {case}: {num_raised} of {len(each)} raised"
        logs = [log for outcome in each if not isinstance(outcome, BaseException) for log in outcome]
        assert logs and all(log.status == "success" for log in logs), f"changed: {case}: an evaluation failed"


asyncio.run(main())
PY
