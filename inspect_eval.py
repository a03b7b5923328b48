"""Inspect AI tasks, asked of one checkpoint through the SDK, as the same records as question files.

A task is `FILE.py@TASK` or `PACKAGE/TASK`. It is loaded once, before the first step, so that what
it lacks (a file, hub data, a sandbox, a grader) is said before anything is paid for, and its
questions are held out of training. One `eval_async` call runs all tasks of an evaluation; its logs
open with `inspect view`. Failed samples stay in the denominator; truncated and malformed answers
are graded as they stand and counted.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import copy
import difflib
import gc
import hashlib
import inspect
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from errors import ConfigError, EvalError, StorageError
from rows.contamination import HeldOutText
from scores.results import SampleResult
from simple_eval import SamplingSettings, refuse_failures
from storage.files import REFUSALS

if TYPE_CHECKING:
    import tinker
    from inspect_ai import Task
    from inspect_ai.dataset import Sample
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.model import Model
    from inspect_ai.scorer import Score
    from tinker_cookbook.renderers import Renderer

DEFAULT_MAX_TOKENS = 1024  # where neither the settings nor the task say
MODEL_GRADED = ("inspect_ai/model_graded_qa", "inspect_ai/model_graded_fact")
GRADER_ROLE = "grader"
CLUSTER_KEY = "cluster"  # of the metadata, where the settings name no other


@dataclass(frozen=True)
class InspectTask:
    """A loaded Inspect task. `sha256` covers its questions, targets, arguments, version, file."""

    name: str
    task: Task
    sha256: str
    held_out_texts: tuple[HeldOutText, ...]
    topics: frozenset[str]
    num_clusters: int
    score_key: str | None
    cluster_key: str
    uses_grader: bool
    code: Mapping[str, str]  # the Python files that made it, with their sha256

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(text.question for text in self.held_out_texts)

    @property
    def marks(self) -> dict[str, str]:
        """What its logs carry, besides what they are told of the weights."""
        return {"eval_task": self.name, "sha256": self.sha256}


class InspectScores(NamedTuple):
    """What one task's log comes to."""

    samples: tuple[SampleResult, ...]
    metrics: dict[str, float]
    log: Path


# --- loading --------------------------------------------------------------------------------------


def load_inspect_task(
    name: str,
    spec: str,
    *,
    args: Mapping[str, Any],
    limit: int | None,
    score_key: str | None,
    cluster_key: str | None,
) -> InspectTask:
    """Load a task with its data. Raises `ConfigError` saying what it lacks."""
    from inspect_ai._eval.loader import load_tasks
    from inspect_ai._util.registry import registry_lookup

    if is_file := ".py@" in spec:
        _refuse_absent_task(name, *spec.rsplit("@", 1))
    with _explaining(name), contextlib.redirect_stdout(sys.stderr):  # stdout is for results
        # A folder PACKAGE/TASK would be searched for tasks, and what is found there run.
        is_known = is_file or registry_lookup("task", spec) is not None
        found = load_tasks([spec], dict(args)) if is_known else []
    if len(found) != 1:
        raise ConfigError(
            f"{name}: {'no' if not found else 'more than one'} Inspect task of this name was "
            "found. Name one as FILE.py@TASK or PACKAGE/TASK, for example inspect_evals/gsm8k."
        )
    task = found[0]
    _refuse_unknown_arguments(name, task, args)
    if limit is not None:
        task.dataset = task.dataset[0:limit]
    if len(task.dataset) == 0:
        raise ConfigError(f"{name}: the task has no samples. Check its data and arguments.")
    if not task.scorer:
        raise ConfigError(f"{name}: the task has no scorer, so it gives no score. Give it one.")
    if task.model is not None:
        raise ConfigError(
            f"{name}: the task names a model of its own, {task.model}, which would answer instead "
            "of the checkpoint. Take `model` out of its Task(...)."
        )
    _refuse_missing_sandbox(name, task)
    texts, topics, clusters, content, keys = [], set(), set(), [], set()
    for position, sample in enumerate(task.dataset, start=1):
        sample.id = sample.id if sample.id is not None else position
        question = _last_user_text(sample.input)
        texts.append(HeldOutText(name, question, _accepted_answers(sample)))
        content.append([sample.id, question, sample.target])
        metadata = sample.metadata or {}
        keys |= metadata.keys()
        topic = metadata.get("topic")
        topics.add(None if topic is None else str(topic))
        cluster = metadata.get(cluster_key or CLUSTER_KEY)
        clusters.add(f"sample {sample.id}" if cluster is None else f"cluster {cluster}")
    if cluster_key is not None and cluster_key not in keys:
        raise ConfigError(
            f"{name}: evaluation.cluster_key names {cluster_key!r}, which no sample has in its "
            f"metadata; they have {', '.join(sorted(map(str, keys))) or 'none'}."
        )
    ids = [str(sample.id) for sample in task.dataset]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise ConfigError(
            f"{name}: two samples have the id {twice!r}, so their scores could not be told apart. "
            "Give each sample an id of its own, or none."
        )
    # The code of a task's own file counts too: another solver or scorer gives other scores.
    code = code_of(Path(spec.rsplit("@", 1)[0])) if ".py@" in spec else {}
    shape = {
        "samples": content,
        "version": task.version,
        "args": dict(args),
        "score_key": score_key,
        "cluster_key": cluster_key,
        "code": sorted(code.values()),
    }
    loaded = InspectTask(
        name=name,
        task=task,
        sha256=hashlib.sha256(json.dumps(shape, default=str).encode()).hexdigest(),
        held_out_texts=tuple(texts),
        topics=frozenset(topics - {None}),
        num_clusters=len(clusters),
        score_key=score_key,
        cluster_key=cluster_key or CLUSTER_KEY,
        uses_grader=any(_asks_grader(scorer) for scorer in task.scorer),
        code=code,
    )
    task.metadata = {**(task.metadata or {}), **loaded.marks}
    return loaded


def code_of(file: Path) -> dict[str, str]:
    """A task's file and the modules beside it that it imports, directly or not -> their sha256.

    What is imported by other means than an import statement is not seen; the loop's own modules
    are not the user's, wherever the file lies.
    """
    file, own = file.resolve(), Path(__file__).resolve().parent
    found: dict[str, str] = {}
    todo = [file]
    while todo:
        path = todo.pop()
        content = path.read_bytes()
        found[str(path)] = hashlib.sha256(content).hexdigest()
        near = (
            n for name in _imported(content) for n in _files_of(name, {path.parent, file.parent})
        )
        todo += [one for one in near if str(one) not in found and one.parent != own]
    return found


def _imported(content: bytes) -> Iterator[str]:
    """Dotted names that a module may import, submodules among them."""
    try:
        nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError):
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = (alias.name for alias in node.names)
            yield from (f"{node.module}.{name}" if node.module else name for name in names)


def _files_of(name: str, folders: set[Path]) -> Iterator[Path]:
    parts = name.split(".")
    for folder in sorted(folders):
        for end in range(1, len(parts) + 1):
            stem = folder.joinpath(*parts[:end])
            for candidate in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
                if candidate.is_file():
                    yield candidate.resolve()


def without_questions(task: InspectTask) -> InspectTask:
    """The task with its first sample only, and an empty phrase in the place of the question."""
    from inspect_ai.dataset import MemoryDataset

    tried = copy.copy(task.task)
    sample = task.task.dataset[0].model_copy(update={"input": "This is a rehearsal."})
    tried.dataset = MemoryDataset([sample], name="rehearsal")
    return replace(task, task=tried)


@contextlib.contextmanager
def _explaining(name: str) -> Iterator[None]:
    """Name the task that cannot be loaded, whatever its code raised."""
    try:
        yield
    except SystemExit as error:
        raise _not_loaded(name, error) from error
    except Exception as error:  # a task is anybody's code, and may raise anything
        raise _not_loaded(name, error) from error


def _not_loaded(name: str, error: BaseException) -> ConfigError:
    return ConfigError(
        f"{name}: the Inspect task cannot be loaded: {type(error).__name__}: {_first_line(error)}. "
        "Check its name, its arguments in evaluation.task_args, and that its data can be read "
        "(benchmarks of inspect_evals download theirs from the hub the first time)."
    )


def _refuse_absent_task(name: str, file: str, task_name: str) -> None:
    """Raise `ConfigError` for a file that does not hold the task.

    Inspect would pass over such a file, and take a task of that name from any other one.
    """
    from inspect_ai._util.decorator import parse_decorators

    with _explaining(name):
        tree = ast.parse(Path(file).read_bytes(), filename=file)
        held = [found for found, _ in parse_decorators(Path(file), "task")]
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    imported = {alias.asname or alias.name for node in imports for alias in node.names}
    if task_name not in imported.union(held):
        tasks = f"its tasks are {', '.join(held)}" if held else "it has no function under @task"
        raise ConfigError(f"{name}: there is no task {task_name!r} in {file}; {tasks}.")


def _refuse_unknown_arguments(name: str, task: Task, args: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an argument that the task does not take; Inspect would only warn."""
    from inspect_ai._util.registry import registry_info, registry_lookup

    made_by = registry_lookup("task", registry_info(task).name)
    assert callable(made_by), "a loaded task has its function in Inspect's registry"
    parameters = inspect.signature(made_by).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    unknown = [key for key in args if key not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known) or 'none'}."
        raise ConfigError(
            f"{name}: evaluation.task_args gives the argument {unknown[0]!r}, which the task does "
            f"not take; {hint}"
        )


def _first_line(error: BaseException) -> str:
    return _first_line_of(str(getattr(error, "message", None) or error))


def _refuse_missing_sandbox(name: str, task: Task) -> None:
    sandboxes = [task.sandbox, *(sample.sandbox for sample in task.dataset)]
    if not any(one is not None and one.type == "docker" for one in sandboxes):
        return
    lacks = None
    if not shutil.which("docker"):
        lacks = "there is no docker command on this machine. Install Docker"
    elif subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        lacks = "`docker info` finds no engine that runs. Start Docker"
    if lacks is not None:
        raise ConfigError(
            f"{name}: the task runs what the model writes in a Docker sandbox, and {lacks}, or "
            "leave the task out."
        )


def _asks_grader(scorer: Any) -> bool:
    """Whether a scorer asks the role `grader`, which the evaluated model plays if nobody else does.

    Known of Inspect's own model-graded scorers, and of others from their source.
    """
    from inspect_ai._util.registry import is_registry_object, registry_info

    if is_registry_object(scorer) and registry_info(scorer).name in MODEL_GRADED:
        return True
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(scorer))))
    except (OSError, TypeError, SyntaxError):
        return False  # no source to look at
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = [{word.arg: word.value for word in call.keywords} for call in calls]
    return any(
        isinstance(role := keywords.get("role"), ast.Constant)
        and role.value == GRADER_ROLE
        and "default" not in keywords
        for keywords in given
    )


def _accepted_answers(sample: Sample) -> tuple[str, ...]:
    """The targets of a sample; where they name choices, the choices' texts too."""
    targets = [sample.target] if isinstance(sample.target, str) else list(sample.target)
    letters = {chr(ord("A") + i): choice for i, choice in enumerate(sample.choices or [])}
    return (*targets, *(letters[target] for target in targets if target in letters))


def _last_user_text(messages: Any) -> str:
    if isinstance(messages, str):
        return messages
    texts = [message.text for message in messages if message.role == "user"]
    return texts[-1] if texts else ""


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
    return Model(bridge, GenerateConfig(max_tokens=DEFAULT_MAX_TOKENS))


async def run_inspect(
    tasks: Sequence[InspectTask],
    model: Model,
    settings: SamplingSettings,
    *,
    log_dir: Path,
    tags: Sequence[str],
    metadata: Mapping[str, Any],
    grader: Model | None,
    limit: int | None = None,
) -> list[InspectScores | EvalError | ConfigError]:
    """Run all tasks in one call, only their first samples with `limit`; scores in their order.

    A task that ended early, or of which more than a tenth of the samples failed, or whose scores
    cannot be read, has an error instead; the others keep their scores. Samples that the log of an
    earlier attempt holds are taken from there.
    """
    from inspect_ai.util._display import init_display_type

    init_display_type("none")
    sampling = asdict(settings)
    del sampling["concurrency"]  # answers do not depend on it
    metadata = {**metadata, "sampling": sampling}
    options: dict[str, Any] = {"temperature": settings.temperature}
    if settings.max_tokens is not None:
        options["max_tokens"] = settings.max_tokens
    options |= {
        "model": model,
        "model_roles": None if grader is None else {GRADER_ROLE: grader},
        "epochs": settings.num_repeats,
        "limit": limit,
        "tags": list(tags),
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
        error = _first_line_of(sample.error.message)
    elif not sample.scores:
        error = "the scorer gave no score"
    else:
        value = _value(task, sample.scores)
        number = _number(value)
        if number is None:
            # NaN is what Inspect's graders give where they find no grade in the judge's answer.
            one = next(iter(sample.scores.values()))
            said = f"{one.reason}: {one.explanation}" if value != value else repr(value)
            error = f"the scorer gave no score: {_first_line_of(said)}"
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
        question=_last_user_text(sample.input),
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


def _first_line_of(text: str) -> str:
    """What fits a message: the first line, no control characters (a model may have written it)."""
    lines = "".join(c if c.isprintable() or c == "\n" else " " for c in text).strip().splitlines()
    return lines[0][:200] if lines else "no details"
