#!/usr/bin/env python
"""Print what Inspect's logs in a folder say, as one JSON object; exit 1 where a task is not whole.

    python scripts/read_inspect_logs.py inspect-logs/first NUM_TASKS

The cookbook's command ends with 0 also where a task ended early, and prints its first scorer alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalLog, read_eval_log


def outcome_of(log: EvalLog) -> dict[str, Any]:
    """What one task came to: its version and configuration, its samples, all of its scores."""
    results, spec = log.results, log.eval
    return {
        "task": spec.task,
        "version": spec.task_version,
        "args": spec.task_args,
        "status": log.status,
        "num_samples": 0 if results is None else results.total_samples,
        "num_completed": 0 if results is None else results.completed_samples,
        "limit": spec.config.limit,
        "epochs": spec.config.epochs,
        "generation": spec.model_generate_config.model_dump(exclude_none=True),
        "scores": {
            f"{score.name}/{name}": metric.value
            for score in ([] if results is None else results.scores)
            for name, metric in score.metrics.items()
        },
        "log": log.location,
    }


def main(log_dir: str, num_tasks: str) -> int:
    """Print the object; the exit code."""
    files = sorted(str(file) for file in Path(log_dir).glob("*.eval"))
    tasks = [outcome_of(read_eval_log(file, header_only=True)) for file in files]
    print(json.dumps({"tasks": tasks}, indent=1))
    broken = [one["task"] for one in tasks if not is_whole(one)]
    if broken or len(tasks) != int(num_tasks):
        said = f"{', '.join(broken)} did not end whole" if broken else f"{len(tasks)} have a log"
        where = f"Look into {log_dir}, for example with: inspect view --log-dir {log_dir}"
        print(f"error: of {num_tasks} tasks {said}; these are no results. {where}", file=sys.stderr)
        return 1
    return 0


def is_whole(one: dict[str, Any]) -> bool:
    return one["status"] == "success" and one["num_completed"] == one["num_samples"] > 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
