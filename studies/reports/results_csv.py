"""`results.csv`: a row for each task of each trial, and one for the trial's score; so too for what
the trials began with, where it is in the report's table.

Numbers stand as numbers. A text that a spreadsheet would work out as a formula has an apostrophe
before it. What is unknown or was not measured is an empty cell.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from errors import one_line
from scores.results import EvalResult, TaskResult
from studies.findings.measured import control_of, measured_arms
from studies.findings.outcome import StudyOutcome, TrialOutcome

Cell = str | int | float | None
ALL_TASKS = "(all)"  # no task can have this name
BASELINE = "baseline"  # the run_id of what the trials began with

# In this order, as docs/studies.md lists and explains them; the variables stand behind `arm`.
BEFORE_VARIABLES = ("run_id", "arm")
AFTER_VARIABLES = (
    "seed",
    "status",
    "round",
    "task",
    "score",
    "low",
    "high",
    "n",
    "num_truncated",
    "num_malformed",
    "num_failed",
    "num_lora_params",
    "learning_rate",
    "num_steps",
    "train_tokens",
    "prompt_tokens",
    "sampled_tokens",
    "minutes",
    "cost_usd",
    "checkpoint",
)
PAID = slice(AFTER_VARIABLES.index("train_tokens"), AFTER_VARIABLES.index("checkpoint"))
FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def results_csv(outcome: StudyOutcome) -> str:
    """The whole file."""
    variables = _variable_columns(outcome)
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([*BEFORE_VARIABLES, *variables.values(), *AFTER_VARIABLES])
    for arm in outcome.arms:
        values = [_value(arm.params.get(name)) for name in variables]
        for trial in arm.trials:
            for row in _rows(outcome, trial):
                cells = [*_texts(trial.run_id, arm.name), *values, *row]
                writer.writerow(["" if cell is None else cell for cell in cells])
    control = control_of(outcome, measured_arms(outcome)).arm
    if control is not None and control.outcome is None:  # what the trials began with
        began = TrialOutcome(
            BASELINE, None, "done", "", control.first, round_no=0,
            checkpoint=control.first.checkpoint,
        )  # fmt: skip
        for row in _rows(outcome, began):
            row[PAID] = [None] * len(row[PAID])  # whoever came first paid for it
            cells = [*_texts(began.run_id, control.name), *([None] * len(variables)), *row]
            writer.writerow(["" if cell is None else cell for cell in cells])
    return written.getvalue()


def _variable_columns(outcome: StudyOutcome) -> dict[str, str]:
    """Variable -> its column, of another name where that is taken."""
    names = dict.fromkeys(outcome.variables)
    for arm in outcome.arms:
        names |= dict.fromkeys(arm.params)
    taken = {*BEFORE_VARIABLES, *AFTER_VARIABLES}
    columns: dict[str, str] = {}
    for name in names:
        column = guarded(name)
        while column in taken:
            column += " (variable)"
        taken.add(column)
        columns[name] = column
    return columns


def guarded(text: str) -> str:
    """A text as one line that no spreadsheet takes for a formula."""
    line = one_line(text)
    return f"'{line}" if line.startswith(FORMULA_STARTS) else line


def _texts(*texts: str) -> list[str]:
    return [guarded(text) for text in texts]


def _value(value: Any) -> Cell:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return guarded(text)


def _rows(outcome: StudyOutcome, trial: TrialOutcome) -> Iterator[list[Cell]]:
    """The score's row, and one for each task; without a result the first alone, and empty."""
    result = trial.result
    measured: list[tuple[str, EvalResult | TaskResult | None]] = [(ALL_TASKS, result)]
    if result is not None:
        measured += [(outcome.task_names.get(t.name, t.name), t) for t in result.tasks]
    return (list(_cells(trial, name, one).values()) for name, one in measured)


def _cells(
    trial: TrialOutcome, task: str, one: EvalResult | TaskResult | None
) -> Mapping[str, Cell]:
    interval = None if one is None else one.interval
    cells: dict[str, Cell] = {
        "seed": trial.seed,
        "status": trial.status,
        "round": trial.round_no,
        "task": guarded(task),
        "score": None if one is None else one.score,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "n": None if one is None else one.n,
        "num_truncated": None if one is None else one.num_truncated,
        "num_malformed": None if one is None else one.num_malformed,
        "num_failed": None if one is None else one.num_failed,
        "num_lora_params": trial.num_lora_params,
        "learning_rate": trial.learning_rate,
        "num_steps": trial.num_steps,
        "train_tokens": trial.usage.train_tokens,
        "prompt_tokens": trial.usage.prompt_tokens,
        "sampled_tokens": trial.usage.sampled_tokens,
        "minutes": trial.usage.minutes,
        "cost_usd": trial.cost_usd,
        "checkpoint": None if trial.checkpoint is None else guarded(trial.checkpoint),
    }
    assert tuple(cells) == AFTER_VARIABLES, "the columns are in one order"
    return cells
