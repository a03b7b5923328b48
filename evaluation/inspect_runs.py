"""Inspect AI tasks, asked of one checkpoint through the SDK, as the same records as question files.

A task is loaded once, before the first step, so that what it lacks (a file, hub data, a sandbox, a
grader) is said before anything is paid for, and its questions are held out of training. One
`eval_async` call runs all tasks of an evaluation; its logs open with `inspect view`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from errors import ConfigError, EvalError, StorageError
from evaluation.inspect_economy import economy
from evaluation.inspect_scores import InspectScores, file_of, scores_of
from evaluation.inspect_tasks import GRADER_ROLE, InspectTask, first_line_of
from simple_eval import SamplingSettings
from storage.files import REFUSALS
from user_code.modules import coming_back

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog
    from inspect_ai.model import Model


EVENTS = frozenset({"events", "events_data", "attachments", "timelines"})  # and what they refer to


class InspectSetting(NamedTuple):
    """What tasks are asked of, how, and where and under which marks their logs go."""

    model: Model
    grader: Model | None
    settings: SamplingSettings
    log_dir: Path
    tags: Sequence[str]
    metadata: Mapping[str, Any]


async def run_inspect(
    tasks: Sequence[InspectTask], setting: InspectSetting, limit: int | None = None
) -> list[InspectScores | EvalError | ConfigError]:
    """Run all tasks in one call, only their first samples with `limit`; scores in their order.

    A task that ended early, or of which more than a tenth of the samples failed, or whose scores
    cannot be read, has an error instead; the others keep their scores. Samples that the log of an
    earlier attempt holds are taken from there.
    """
    from inspect_ai import Epochs
    from inspect_ai.util._display import init_display_type

    init_display_type("none")
    settings, log_dir = setting.settings, setting.log_dir
    sampling = asdict(settings)
    del sampling["concurrency"]  # answers do not depend on it
    if settings.system_prompt is None:  # as in logs of earlier versions
        del sampling["system_prompt"]
    metadata = {**setting.metadata, "sampling": sampling}
    options: dict[str, Any] = {"temperature": settings.temperature}
    if settings.max_tokens is not None:
        options["max_tokens"] = settings.max_tokens
    options |= {
        "model": setting.model,
        "model_roles": None if setting.grader is None else {GRADER_ROLE: setting.grader},
        # A task's own reducers may need more repeats than there are; a score is the mean here.
        "epochs": Epochs(settings.num_repeats, "mean"),
        "limit": limit,
        "tags": list(setting.tags),
        "metadata": metadata,
        "log_dir": str(log_dir),
        "log_level": "error",
        "ctl_server": False,
        "log_realtime": False,  # a database write per event, a fifth of the cost of a sample
        "log_buffer": _log_buffer(
            max(_num_samples(task.task, limit) for task in tasks) * settings.num_repeats
        ),
        "score_display": False,  # means of all samples so far, for a display that is off
        "fail_on_error": False,
        "max_tasks": len(tasks),
        # So many again are prepared or written down while the others are being sampled.
        "max_samples": 2 * settings.concurrency,
        "max_connections": settings.concurrency,
    }
    earlier = [await _earlier_log(task, log_dir, metadata) for task in tasks]
    logs = {i: log for i, log in enumerate(earlier) if log is not None and _is_complete(log)}
    begun = {i: log for i, log in enumerate(earlier) if log is not None and i not in logs}
    fresh = [i for i, log in enumerate(earlier) if log is None]
    with contextlib.redirect_stdout(sys.stderr):
        # Inspect takes tasks that go on and new ones, but not in the same call.
        goes_on = await _eval([_going_on(tasks[i].task, log) for i, log in begun.items()], options)
        logs |= zip(begun, goes_on, strict=True)
        for log in begun.values():  # its samples are in the new one
            file_of(log).unlink(missing_ok=True)
        logs |= zip(fresh, await _eval([tasks[i].task for i in fresh], options), strict=True)
        return [_outcome(task, logs[i], logs[i] is not earlier[i]) for i, task in enumerate(tasks)]


def _num_samples(task: Task, limit: int | None) -> int:
    return len(task.dataset) if limit is None else min(limit, len(task.dataset))


def _log_buffer(num_samples: int) -> int:
    """How many samples wait to be written to the log at once.

    Those are asked again after a kill. Inspect writes the log's whole directory each time, so that
    a number that does not grow with the samples would cost each of them more, the more there are.
    """
    return max(1, min(num_samples // 10, 32), num_samples // 50)


async def _eval(tasks: list[Any], options: Mapping[str, Any]) -> list[EvalLog]:
    from inspect_ai import eval_async
    from inspect_ai._util.error import PrerequisiteError

    if not tasks:
        return []
    with economy(), coming_back():
        try:
            logs = await eval_async(tasks, **options)
        except PrerequisiteError as error:
            names = ", ".join(str(getattr(task, "name", None) or task.task.name) for task in tasks)
            raise EvalError(
                f"{names}: Inspect cannot run: {first_line_of(str(error.message))}."
            ) from None
        if len(logs) < len(tasks) or any(log.status == "cancelled" for log in logs):
            raise asyncio.CancelledError  # Inspect swallows it
        for log in logs:
            _refuse_unwritten(log)
        return [await _read_scored(file_of(log)) for log in logs]


async def _read(file: Path) -> EvalLog:
    """A log with its samples. Asked for the samples of what it returns, Inspect reads the file as
    well, but by a second event loop inside this one, for which it makes all of asyncio slower."""
    from inspect_ai.log import read_eval_log_async

    return await read_eval_log_async(str(file))


async def _read_scored(file: Path) -> EvalLog:
    """A log with what its samples were asked, answered and scored, and without their events, which
    are most of it."""
    from inspect_ai.log import EvalSample, read_eval_log_async

    log = await read_eval_log_async(str(file), header_only=True)
    samples = []
    with zipfile.ZipFile(file) as archive:  # Inspect has taught it its compression
        for name in dict.fromkeys(archive.namelist()):  # of one name, the last one counts
            if name.startswith("samples/"):
                found = json.loads(archive.read(name))
                samples.append(
                    EvalSample.model_validate(
                        {key: value for key, value in found.items() if key not in EVENTS}
                    )
                )
    # In Inspect's order.
    log.samples = sorted(
        samples,
        key=lambda sample: (
            sample.epoch,
            sample.id if isinstance(sample.id, str) else str(sample.id).zfill(20),
        ),
    )
    return log


def _refuse_unwritten(log: EvalLog) -> None:
    """Raise `StorageError` for a task that ended because its log could not be written.

    Inspect swallows the `OSError` and keeps its repr. What other logs hold is found there again.
    """
    found = re.match(r"[A-Za-z]*Error\((\d+), ", log.error.message if log.error is not None else "")
    if found is None or (reason := int(found[1])) not in REFUSALS:
        return
    raise StorageError(
        f"{file_of(log)}: the disk refused to write this log of Inspect, or a temporary file of "
        f"it in {tempfile.gettempdir()}: {os.strerror(reason)}. Make room in both places, or set "
        "TMPDIR to a folder with more; what was recorded before is whole."
    )


async def _earlier_log(
    task: InspectTask, log_dir: Path, metadata: Mapping[str, Any]
) -> EvalLog | None:
    """The log of an attempt at the same task on the same weights, if there is one to go on from."""
    from inspect_ai.log import read_eval_log_async

    wanted = {**metadata, **task.marks}
    found: list[EvalLog] = []
    for file in sorted(log_dir.glob("*.eval")):
        try:
            header = await read_eval_log_async(str(file), header_only=True)
            marks = header.eval.metadata or {}
            if all(marks.get(key) == value for key, value in wanted.items()):
                found.append(await _read(file))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            continue  # not a log, or one that was cut short before it could be read
    return max(found, key=lambda log: len(log.samples or []), default=None)


def _is_complete(log: EvalLog) -> bool:
    return log.status == "success" and all(sample.error is None for sample in log.samples or [])


def _going_on(task: Task, log: EvalLog) -> Any:
    """A task as Inspect goes on with it from a log."""
    from inspect_ai._eval.loader import resolve_task_args
    from inspect_ai._eval.task import PreviousTask

    return PreviousTask(
        id=log.eval.task_id,
        task=task,
        task_args=resolve_task_args(task),
        model=None,
        model_roles=None,
        sandbox=task.sandbox,
        log=log,
        log_info=None,
    )


def _outcome(
    task: InspectTask, log: EvalLog, is_new: bool
) -> InspectScores | EvalError | ConfigError:
    try:
        return scores_of(task, log)
    except (EvalError, ConfigError) as error:
        # Answers without an error wait in the log, and count once they are part of a result; where
        # nothing is left to ask again there will be none.
        is_final = isinstance(error, ConfigError) or _is_complete(log)
        lost = [one for one in log.samples or [] if is_final or one.error is not None]
        usages = [u for sample in lost for u in (sample.model_usage or {}).values()]
        if is_new:
            error.num_prompt_tokens = sum(usage.input_tokens for usage in usages)
            error.num_sampled_tokens = sum(usage.output_tokens for usage in usages)
        return error
