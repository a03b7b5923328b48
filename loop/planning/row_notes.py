"""What is said of rows before the first step: keys that are not used, and how they are rendered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from evaluation.held_out import HeldOutFile
from evaluation.preferences import PairFile
from loop.planning.inputs import Inputs
from loop.planning.plan import Plan

MAX_COLUMNS = 40
NOTES = {
    "row weight": "have a weight of their own, which their loss is multiplied by",
    "message weight": "have messages whose weight in the loss is their own (0: no loss)",
    "tools": "have tools or calls of them, written as the chat format writes them",
    "calls without loss": (
        "have calls of tools that carry no loss, since only the last answer is trained; rows that "
        "end with the call train it"
    ),
    "reasoning": "reason before the last answer; it is trained as the chat format writes it",
    "chosen cut": "are pairs whose chosen answer max_seq_length cuts",
    "rejected cut": "are pairs whose rejected answer max_seq_length cuts",
    "control tokens": "hold control tokens of the chat format in their text; they stay text there",
}


def describe_unused(inputs: Inputs) -> Iterator[str]:
    """Yield a line for each setting whose files have keys that nothing uses."""
    for key, data in inputs.files.items():
        unused = sum((Counter(file.unused) for file in data.files), Counter[str]())
        if unused:
            yield f"{key}: columns that are not used: {_listed(unused, data.num_rows)}"
    for task in inputs.tasks:
        if isinstance(task.work, HeldOutFile) and not task.work.is_split and task.work.unused:
            listed = _listed(task.work.unused, len(task.work.examples))
            yield f"val_file {task.name}: columns that are not used: {listed}"
    for task in (*inputs.tasks, *inputs.test_tasks):
        if isinstance(task.work, PairFile) and task.work.unused:
            listed = _listed(task.work.unused, len(task.work.examples))
            yield f"{task.name}: columns that are not used: {listed}"


def _listed(unused: Mapping[str, int], num_rows: int) -> str:
    """The names, each with its number of rows where other rows may use it or lack it."""
    names = sorted(unused)
    left = len(names) - MAX_COLUMNS
    shown = ", ".join(
        name if unused[name] == num_rows else f"{name} (in {unused[name]})"
        for name in names[:MAX_COLUMNS]
    )
    return f"{shown} and {left} more" if left > 0 else shown


def describe_rendering(plan: Plan) -> Iterator[str]:
    """Yield a line for each thing that rendering did to rows and that nobody may have expected."""
    for key, table in (("train_file", plan.train), ("mining.pool_file", plan.pool)):
        for note, said in NOTES.items():
            if table.noted[note]:
                yield f"{key}: {table.noted[note]} of {len(table.examples)} rows {said}"
