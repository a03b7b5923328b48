"""Inspect AI tasks, asked of one checkpoint through the SDK, as the same records as question files.

A task is `FILE.py@TASK` or `PACKAGE/TASK`. It is loaded once, before the first step, so that what
it lacks (a file, hub data, a sandbox, a grader) is said before anything is paid for, and its
questions are held out of training. One `eval_async` call runs all tasks of an evaluation; its logs
open with `inspect view`. Failed samples stay in the denominator; truncated and malformed answers
are graded as they stand and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import math
import os
import re
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from errors import ConfigError, EvalError, StorageError
from evaluation.inspect_tasks import GRADER_ROLE, InspectTask, first_line_of, last_user_text
from scores.results import SampleResult
from simple_eval import SamplingSettings, refuse_failures
from storage.files import REFUSALS

if TYPE_CHECKING:
    import tinker
    from inspect_ai import Task
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.model import Model
    from inspect_ai.scorer import Score
    from tinker_cookbook.renderers import Renderer

INSPECT_MAX_TOKENS = 1024  # where neither the settings nor the task say


class InspectScores(NamedTuple):
    """What one task's log comes to."""

    samples: tuple[SampleResult, ...]
    metrics: dict[str, float]
    log: Path


# --- loading --------------------------------------------------------------------------------------


# --- running --------------------------------------------------------------------------------------

_sequences: ContextVar[Sequence[tinker.SampledSequence]] = ContextVar("sequences")


class _RecordingClient:
    """A sampling client as the cookbook's bridge calls it, which remembers what came back.

    The bridge reports every answer as complete; the call's own context still has the sequences.
    """

    def __init__(self, client: tinker.SamplingClient) -> None:
        self._client = client

    async def sample_async(
        self, prompt: tinker.ModelInput, sampling_params: tinker.SamplingParams, num_samples: int
    ) -> tinker.SampleResponse:
        response = await self._client.sample(prompt, num_samples, sampling_params)
        _sequences.set(response.sequences)
        return response


def inspect_model(client: tinker.SamplingClient, renderer: Renderer, seed: int, name: str) -> Model:
    """An Inspect model that samples `client`, with truncated and malformed answers marked.

    `name` is what its logs call it.
    """
    from inspect_ai.model import GenerateConfig, Model, ModelAPI, modelapi
    from inspect_ai.solver._task_state import sample_state
    from tinker_cookbook.eval.inspect_utils import InspectAPIFromTinkerSampling

    @modelapi(name="tinker")
    class Bridge(InspectAPIFromTinkerSampling):
        def __init__(self) -> None:
            # Not the bridge's own: it would load a directory's tokenizer with remote code allowed.
            ModelAPI.__init__(self, model_name=name)
            self.sampling_client: Any = _RecordingClient(client)
            self.renderer = renderer
            self.verbose = False
            self.include_reasoning = False
            self._num_asked: Counter[tuple[str, int, str]] = Counter()

        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            # Repeats of a question get different seeds, the same ones in every evaluation, also
            # in one that goes on where another was cut short.
            sample = sample_state()
            assert sample is not None, "Inspect asks on behalf of a sample"
            asked = "\n".join(f"{message.role}: {message.text}" for message in input)
            place = (str(sample.sample_id), sample.epoch, asked)
            digest = hashlib.sha256(f"{seed}:{self._num_asked[place]}:{place}".encode()).digest()
            self._num_asked[place] += 1
            config = config.model_copy(update={"seed": int.from_bytes(digest[:4]) // 2})
            output = await super().generate(input, tools, tool_choice, config)
            for choice, sequence in zip(output.choices, _sequences.get(), strict=True):
                if sequence.stop_reason == "length":
                    choice.stop_reason = "max_tokens"
                elif not renderer.parse_response(list(sequence.tokens))[1].is_clean:
                    output.metadata = {**(output.metadata or {}), "malformed": True}
            return output

    bridge = Bridge()  # pyright: ignore[reportCallIssue] (the decorator hides our __init__)
    return Model(bridge, GenerateConfig(max_tokens=INSPECT_MAX_TOKENS))


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
    from inspect_ai.util._display import init_display_type

    init_display_type("none")
    settings, log_dir = setting.settings, setting.log_dir
    sampling = asdict(settings)
    del sampling["concurrency"]  # answers do not depend on it
    metadata = {**setting.metadata, "sampling": sampling}
    options: dict[str, Any] = {"temperature": settings.temperature}
    if settings.max_tokens is not None:
        options["max_tokens"] = settings.max_tokens
    options |= {
        "model": setting.model,
        "model_roles": None if setting.grader is None else {GRADER_ROLE: setting.grader},
        "epochs": settings.num_repeats,
        "limit": limit,
        "tags": list(setting.tags),
        "metadata": metadata,
        "log_dir": str(log_dir),
        "log_level": "error",
        "ctl_server": False,
        "log_realtime": False,  # a database write per event, a fifth of the cost of a sample
        "fail_on_error": False,
        "max_tasks": len(tasks),
        # So many again are prepared or written down while the others are being sampled.
        "max_samples": 2 * settings.concurrency,
        "max_connections": settings.concurrency,
    }
    earlier = [_earlier_log(task, log_dir, metadata) for task in tasks]
    logs = {i: log for i, log in enumerate(earlier) if log is not None and _is_complete(log)}
    begun = {i: log for i, log in enumerate(earlier) if log is not None and i not in logs}
    fresh = [i for i, log in enumerate(earlier) if log is None]
    with contextlib.redirect_stdout(sys.stderr), _rare_garbage_collection():
        # Inspect takes tasks that go on and new ones, but not in the same call.
        goes_on = await _eval([_going_on(tasks[i].task, log) for i, log in begun.items()], options)
        logs |= zip(begun, goes_on, strict=True)
        for log in begun.values():  # its samples are in the new one
            _file_of(log).unlink(missing_ok=True)
        logs |= zip(fresh, await _eval([tasks[i].task for i in fresh], options), strict=True)
        return [_outcome(task, logs[i], logs[i] is not earlier[i]) for i, task in enumerate(tasks)]


async def _eval(tasks: list[Any], options: Mapping[str, Any]) -> list[EvalLog]:
    from inspect_ai import eval_async

    if not tasks:
        return []
    logs = await eval_async(tasks, **options)
    if len(logs) < len(tasks) or any(log.status == "cancelled" for log in logs):
        raise asyncio.CancelledError  # Inspect swallows it
    for log in logs:
        _refuse_unwritten(log)
    return logs


def _refuse_unwritten(log: EvalLog) -> None:
    """Raise `StorageError` for a task that ended because its log could not be written.

    Inspect swallows the `OSError` and keeps its repr. What other logs hold is found there again.
    """
    found = re.match(r"[A-Za-z]*Error\((\d+), ", log.error.message if log.error is not None else "")
    if found is None or (reason := int(found[1])) not in REFUSALS:
        return
    raise StorageError(
        f"{_file_of(log)}: the disk refused to write this log of Inspect, or a temporary file of "
        f"it in {tempfile.gettempdir()}: {os.strerror(reason)}. Make room in both places, or set "
        "TMPDIR to a folder with more; what was recorded before is whole."
    )


def _earlier_log(task: InspectTask, log_dir: Path, metadata: Mapping[str, Any]) -> EvalLog | None:
    """The log of an attempt at the same task on the same weights, if there is one to go on from."""
    from inspect_ai.log import read_eval_log

    wanted = {**metadata, **task.marks}
    found: list[EvalLog] = []
    for file in sorted(log_dir.glob("*.eval")):
        try:
            marks = read_eval_log(str(file), header_only=True).eval.metadata or {}
            if all(marks.get(key) == value for key, value in wanted.items()):
                found.append(read_eval_log(str(file)))
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


def _file_of(log: EvalLog) -> Path:
    return Path(log.location.removeprefix("file://"))


@contextlib.contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Collect rarely: a sample makes thousands of objects that are no cycles, and looking through
    them as often as by default is a quarter of its cost (benchmarks/eval_overhead.py)."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _outcome(
    task: InspectTask, log: EvalLog, is_new: bool
) -> InspectScores | EvalError | ConfigError:
    try:
        return scores_of(task, log)
    except (EvalError, ConfigError) as error:
        # Answers without an error wait in the log, and count once they are part of a result; of
        # scores that cannot be read there will be none.
        lost = [
            sample
            for sample in log.samples or []
            if sample.error is not None or isinstance(error, ConfigError)
        ]
        usages = [u for sample in lost for u in (sample.model_usage or {}).values()]
        if is_new:
            error.num_prompt_tokens = sum(usage.input_tokens for usage in usages)
            error.num_sampled_tokens = sum(usage.output_tokens for usage in usages)
        return error


def scores_of(task: InspectTask, log: EvalLog) -> InspectScores:
    """Read what a log measured. Raises `EvalError` where it is not a complete evaluation, and
    `ConfigError` where its scores are not numbers from 0 to 1, or several of which none is named.
    """
    samples = tuple(_sample_result(task, sample) for sample in log.samples or [])
    refuse_failures(task.name, samples)
    if log.status != "success" or not samples:
        found = log.error.message if log.error is not None else f"its status is {log.status}"
        raise EvalError(
            f"{task.name}: Inspect did not complete the task: {found}. The log is {log.location}."
        )
    metrics = {
        f"{score.name}/{name}": float(metric.value)
        for score in (log.results.scores if log.results is not None else [])
        for name, metric in score.metrics.items()
        if isinstance(metric.value, int | float) and math.isfinite(metric.value)
    }
    return InspectScores(samples, metrics, _file_of(log))


def _sample_result(task: InspectTask, sample: EvalSample) -> SampleResult:
    metadata = sample.metadata or {}
    choices = sample.output.choices if sample.output is not None else []
    stop_reason = choices[0].stop_reason if choices else None
    target = sample.target if isinstance(sample.target, list) else [sample.target]
    usage = list((sample.model_usage or {}).values())
    is_malformed = bool(choices) and bool((sample.output.metadata or {}).get("malformed"))
    error, score = None, 0.0
    if sample.error is not None:
        error = first_line_of(sample.error.message)
    elif not sample.scores:
        error = "the scorer gave no score"
    else:
        value = _value(task, sample.scores)
        number = _number(value)
        if number is None:
            # NaN is what Inspect's graders give where they find no grade in the judge's answer.
            one = next(iter(sample.scores.values()))
            said = f"{one.reason}: {one.explanation}" if value != value else repr(value)
            error = f"the scorer gave no score: {first_line_of(said)}"
        elif 0 <= number <= 1:
            score = number
        else:
            raise ConfigError(
                f"{task.name}: sample {sample.id} has the score {number:g}, and a score is between "
                "0 and 1. Use a scorer that rates answers on that range; then start a new run, or "
                "evaluate this run's checkpoints with --evaluate."
            )
    topic, cluster = metadata.get("topic"), metadata.get(task.cluster_key)
    return SampleResult(
        id=f"{task.name}/{sample.id}",
        topic=None if topic is None else str(topic),
        question=last_user_text(sample.input),
        expected=tuple(map(str, target)),
        answer=sample.output.completion if choices else None,
        score=score,
        truncated=stop_reason in ("max_tokens", "model_length"),
        malformed=is_malformed,
        error=error,
        repeat=sample.epoch,
        cluster=None if cluster is None else str(cluster),
        num_prompt_tokens=sum(one.input_tokens for one in usage),
        num_sampled_tokens=sum(one.output_tokens for one in usage),
    )


def _value(task: InspectTask, scores: Mapping[str, Score]) -> Any:
    """The value that counts: of the first scorer, or the one that the settings name.

    Raises `ConfigError` where the settings have to say which, or name one that is not there.
    """
    key, named = task.score_key, scores.get(task.score_key or "")
    value = (named or next(iter(scores.values()))).value
    if not isinstance(value, dict):
        if key is None or named is not None:
            return value
        found = ", ".join(scores)
    elif named is None and key in value:
        return value[key]
    else:
        found = ", ".join(value)
    said = "several values and none is named" if key is None else f"no value {key!r}"
    raise ConfigError(
        f"{task.name}: its scorer gives {said}; it gives {found}. Say which one counts: "
        f"evaluation.score_key = {{{json.dumps(task.name)}: ...}}; then start a new run, or "
        "evaluate this run's checkpoints with --evaluate."
    )


def _number(value: Any) -> float | None:
    """A scorer's value as a number; None for one that Inspect would count as 0 with a warning."""
    from inspect_ai.scorer import CORRECT, INCORRECT, NOANSWER, PARTIAL, value_to_float

    if isinstance(value, str):
        known = value in (CORRECT, INCORRECT, PARTIAL, NOANSWER) or value.lower() in _BOOLEANS
        if not known:
            try:
                float(value)
            except ValueError:
                return None
    elif not isinstance(value, int | float):
        return None
    number = float(value_to_float()(value))
    return number if math.isfinite(number) else None


_BOOLEANS = ("yes", "true", "no", "false")
