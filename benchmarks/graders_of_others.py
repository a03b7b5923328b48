"""Judge answers with a grader of another project: a line of JSON in, `true` or `false` out.

    PYTHON benchmarks/graders_of_others.py strict-match|flexible-extract|math-verify

Run by graders.py in an environment that has the packages of requirements-graders.txt. Both filters
and the metric of lm-evaluation-harness are its own, with the settings of its GSM8K task.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

Judge = Callable[[str, str], bool]  # of a gold answer and an answer


def gsm8k(filter_name: str) -> Judge:
    """A filter of lm-evaluation-harness' GSM8K, and the metric that compares what it extracts."""
    package = import_module("lm_eval")
    filters, metrics = import_module("lm_eval.filters"), import_module("lm_eval.api.metrics")
    instance_of = import_module("lm_eval.api.instance").Instance
    file = Path(str(package.__file__)).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    task: dict[str, Any] = yaml.safe_load(file.read_text())
    (steps,) = (one["filter"] for one in task["filter_list"] if one["name"] == filter_name)
    parts = [(s["function"], {k: v for k, v in s.items() if k != "function"}) for s in steps]
    pipeline = filters.build_filter_ensemble(filter_name, parts)
    (metric,) = task["metric_list"]
    named = ("metric", "aggregation", "higher_is_better")
    settings = {key: value for key, value in metric.items() if key not in named}

    def judge(gold: str, answer: str) -> bool:
        asked = instance_of("generate_until", doc={}, arguments=("",), idx=0, resps=[answer])
        pipeline.apply([asked])
        # In the data of that task the gold answer stands after four hashes.
        score = metrics.exact_match_fn(
            references=[f"#### {gold}"], predictions=[asked.filtered_resps[filter_name]], **settings
        )
        return bool(score["exact_match"] == 1.0)

    return judge


def math_verify() -> Judge:
    """`parse` and `verify` as they come, without their limits: graders.py bounds the time.

    Those limits are alarms, which go off sooner or later with the load of the machine.
    """
    parse, verify = import_module("math_verify").parse, import_module("math_verify").verify

    def judge(gold: str, answer: str) -> bool:
        # A gold answer in LaTeX is to stand in a LaTeX environment, says its documentation.
        wrapped = f"${gold}$" if "\\" in gold else gold
        gold_values, values = (parse(text, parsing_timeout=None) for text in (wrapped, answer))
        return bool(verify(gold_values, values, timeout_seconds=None))

    return judge


def main() -> int:
    (name,) = sys.argv[1:]
    judge = math_verify() if name == "math-verify" else gsm8k(name)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(judge(*json.loads(line))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
