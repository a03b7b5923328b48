"""Evaluations are read back as they were measured: the ledger's events have a digest of each task.

A file of an evaluation that something else has changed is refused, and not shown as evidence. Of
runs of versions without digests the sums are held against each other, and no more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from errors import RunStoreError
from ledger.run_directory import Event
from ledger.weights import SavedWeightsRecords
from scores.intervals import mean
from scores.results import EvalResult, HeldOutLoss, Measured, TaskResult

T = TypeVar("T")
NEARLY = 1e-9  # sums of another order


class SealedEvaluations(SavedWeightsRecords):
    """A run directory whose evaluations are compared with its ledger when they are read."""

    def _read_anew(self, name: str, from_json: Callable[[dict[str, Any]], T]) -> T:
        value = super()._read_anew(name, from_json)
        if isinstance(value, EvalResult):
            said = [*self.events("evaluated"), *self.events("test_evaluated")]
            _refuse(self.run_dir / name, result_problem(value, _of_file(said, name)))
        if isinstance(value, EvalResult | Measured):
            said = [*self.events("measured"), *self.events("test_measured")]
            measured = Measured(value.tasks, value.held_out)
            _refuse(self.run_dir / name, measured_problem(measured, _of_file(said, name)))
        return value

    def _measured_of(self, name: str) -> Measured:
        """What a file has of measurements; of one that holds a result what that has, so that its
        samples are read and kept once."""
        is_held = (name, Measured.from_json) in self._held
        if not is_held and _of_file(
            [*self.events("evaluated"), *self.events("test_evaluated")], name
        ):
            result = self._read(name, EvalResult.from_json)
            return Measured(result.tasks, result.held_out)
        return self._read(name, Measured.from_json)


def _of_file(events: Iterable[Event], name: str) -> list[Event]:
    return [event for event in events if event["file"] == name]


def _refuse(path: Path, problem: str | None) -> None:
    if problem is not None:
        raise RunStoreError(
            f"{path}: {problem}. The file was changed by something else; restore it or start a "
            "new run."
        )


def digests_of(measured: Measured) -> dict[str, str]:
    """What tells of each task that it is as it was measured: a digest of what it is judged by.

    Fields that a later version may add are not in it, so that it stays.
    """
    digests = {task.name: _digest(_judged(task)) for task in measured.tasks}
    return digests | {loss.name: _digest(_losses(loss)) for loss in measured.held_out}


def _judged(task: TaskResult) -> list[Any]:
    samples = [
        [
            one.id, one.repeat, one.topic, one.question, one.expected, one.answer, one.score,
            one.truncated, one.malformed, one.error,
        ]
        for one in task.samples
    ]  # fmt: skip
    return [task.score, task.stderr, task.interval, task.n, samples]


def _losses(loss: HeldOutLoss) -> list[Any]:
    return [loss.nll, loss.n, [[row.id, row.nll_sum, row.num_loss_tokens] for row in loss.rows]]


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def measured_problem(measured: Measured, events: Iterable[Event]) -> str | None:
    """What of an evaluation's tasks is other than these events have it; None where nothing is."""
    for task in measured.tasks:
        came_to = mean(list(task.scores.values()))
        if abs(came_to - task.score) > NEARLY or task.n != len(task.scores):
            return (
                f"the score of {task.name} is given as {task.score:.4f} of {task.n} questions, and "
                f"its answers come to {came_to:.4f} of {len(task.scores)}"
            )
    recorded: dict[str, str] = {}
    for event in events:
        recorded.update(event.get("digests", {}))
    found = digests_of(measured)
    for name in recorded.keys() & found.keys():
        if recorded[name] != found[name]:
            return f"its questions, answers or scores of {name} are not those that were measured"
    return None


def result_problem(result: EvalResult, events: Iterable[Mapping[str, Any]]) -> str | None:
    """What of a result is other than the last of these events has it; None where nothing is."""
    for event in list(events)[-1:]:
        if event["score"] != result.score:
            return f"its score is {result.score:.4f}, and the ledger has {event['score']:.4f}"
        recorded, found = event.get("interval"), result.interval
        if recorded is not None and (found is None or list(recorded) != list(found)):
            return "its interval is not the one in the ledger"
    return None
