"""What the name of a task says.

It is `simple_qa`, `qa:FILE.jsonl`, `pref:FILE.jsonl`, `nll:FILE.jsonl`, `FILE.py@TASK` or
`PACKAGE/TASK`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

FILE_TASKS = ("qa:", "pref:", "nll:")  # whose names go on with a file's
SPLIT_TASK = "nll:split"  # the loss on the share of `train_file` that is held out


def is_inspect_task(name: str) -> bool:
    """Whether a task's name is `FILE.py@TASK` or `PACKAGE/TASK`."""
    if name.startswith(FILE_TASKS):
        return False
    # In `../..` Inspect would look for tasks, and run what it finds.
    return bool(
        re.fullmatch(r".+\.py@\w[^@]*", name) or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)
    ) and not (name.endswith((".py", ".jsonl")))


def check_task_names(key: str, names: list[str]) -> None:
    for name in names:
        is_file = name.startswith(FILE_TASKS) and not name.endswith(":")
        if not (name == "simple_qa" or is_file or is_inspect_task(name)):
            raise ValueError(
                f"{key} names {name!r}, which is none of the kinds that can be evaluated: "
                "`simple_qa`, `qa:FILE.jsonl`, `pref:FILE.jsonl`, `nll:FILE.jsonl`, `FILE.py@TASK` "
                "or `PACKAGE/TASK`."
            )
    if len(set(names)) < len(names):
        raise ValueError(f"{key} names one task twice. Name each once.")


def known_tasks(known: Iterable[str]) -> str:
    names = ", ".join(known)
    return f"it may name {names}." if names else "there is no task that it could name."
