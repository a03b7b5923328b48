"""Inspect tasks as they are loaded: what they ask, how they are scored, and what they lack.

Loading a task runs its code, which is anybody's: whatever it raises is told as the task's fault.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import difflib
import inspect
import json
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from errors import ConfigError, one_line
from evaluation.surroundings import loading_apart
from evaluation.task_content import content_sha256
from rows.contamination import EvalText
from user_code.modules import UserModules, in_folder
from user_code.parsing import parsed

if TYPE_CHECKING:
    from inspect_ai import Task


MODEL_GRADED = ("inspect_ai/model_graded_qa", "inspect_ai/model_graded_fact")

GRADER_ROLE = "grader"
CLUSTER_KEY = "cluster"  # of the metadata, where the settings name no other


@dataclass(frozen=True)
class InspectTask:
    """A loaded Inspect task. `sha256` covers all that it asks, its arguments and its code."""

    name: str
    task: Task
    sha256: str
    eval_texts: tuple[EvalText, ...]
    topics: frozenset[str]
    num_clusters: int
    score_key: str | None
    cluster_key: str
    uses_grader: bool
    code: Mapping[str, str]  # the Python files that made it, with their sha256
    scorers: tuple[str, ...] = ()  # their names, in their order
    varies: bool = False  # whether loading it again gave other content

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(text.question for text in self.eval_texts)

    @property
    def marks(self) -> dict[str, str]:
        """What its logs carry, besides what they are told of the weights."""
        return {"eval_task": self.name, "sha256": self.sha256}


@dataclass(frozen=True)
class TaskOptions:
    """What the settings say of a task."""

    args: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    score_key: str | None = None
    cluster_key: str | None = None


def load_and_compare(name: str, spec: str, options: TaskOptions) -> InspectTask:
    """Load a task, and once more where that may show that its content is another each time, as of
    samples that are shuffled without a seed. Raises `ConfigError`.

    Loading an installed task may take long; it is loaded again only where it drew from the random
    numbers that all code shares. The second one is returned: what its code registered came last.
    """
    before = _random_states()
    first = load_inspect_task(name, spec, options)
    if not first.code and _random_states() == before:
        return first
    again = load_inspect_task(name, spec, options)
    return replace(again, varies=again.sha256 != first.sha256)


def _random_states() -> list[str]:
    """Where the generators are that `random` and numpy share between all code."""
    import numpy

    return [str(random.getstate()), str(numpy.random.get_state())]


def load_inspect_task(name: str, spec: str, options: TaskOptions) -> InspectTask:
    """Load a task with its data. Raises `ConfigError` saying what it lacks."""
    from inspect_ai._util.registry import registry_log_name

    with loading_apart():
        task, code = _load_task(name, spec, options.args)
    if options.limit is not None:
        task.dataset = task.dataset[0 : options.limit]
    _refuse_unusable(name, task)
    _refuse_missing_sandbox(name, task)
    cluster_key = options.cluster_key or CLUSTER_KEY
    texts, topics, clusters = [], set(), set()
    for position, sample in enumerate(task.dataset, start=1):
        sample.id = sample.id if sample.id is not None else position
        metadata = sample.metadata or {}
        topic, cluster = metadata.get("topic"), metadata.get(cluster_key)
        question = last_user_text(sample.input)
        texts.append(EvalText(name, question, cluster=None if cluster is None else str(cluster)))
        topics.add(None if topic is None else str(topic))
        clusters.add(f"sample {sample.id}" if cluster is None else f"cluster {cluster}")
    _refuse_samples(name, task, options.cluster_key)
    _refuse_unnamed_value(name, task, options.score_key)
    said = {
        "args": dict(options.args),
        "score_key": options.score_key,
        "cluster_key": options.cluster_key,
        "code": sorted(code.values()),
        "package": None if code else _distribution_of(task),
    }
    loaded = InspectTask(
        name=name,
        task=task,
        sha256=content_sha256(task, said),
        eval_texts=tuple(texts),
        topics=frozenset(topics - {None}),
        num_clusters=len(clusters),
        score_key=options.score_key,
        cluster_key=cluster_key,
        uses_grader=any(_asks_grader(scorer) for scorer in task.scorer or ()),
        code=code,
        scorers=tuple(registry_log_name(scorer) for scorer in task.scorer or ()),
    )
    task.metadata = {**(task.metadata or {}), **loaded.marks}
    return loaded


def _load_task(name: str, spec: str, args: Mapping[str, Any]) -> tuple[Task, dict[str, str]]:
    """The task of this name as its code makes it, and that code where it is the user's."""
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
        if ".py@" not in spec:
            return _load_package_task(name, spec, args), {}
        return _load_file_task(name, spec, args)


def _load_package_task(name: str, spec: str, args: Mapping[str, Any]) -> Task:
    from inspect_ai._eval.loader import load_tasks
    from inspect_ai._util.registry import registry_lookup

    with _explaining(name):
        function = registry_lookup("task", spec)
    if function is None:  # a folder PACKAGE/TASK would be searched for tasks, and these be run
        raise ConfigError(
            f"{name}: no Inspect task of this name was found. Name one as FILE.py@TASK or "
            "PACKAGE/TASK, for example inspect_evals/gsm8k."
        )
    _refuse_unknown_arguments(name, function, args)
    with _explaining(name):
        (task,) = load_tasks([spec], dict(args))
    return task


def _load_file_task(name: str, spec: str, args: Mapping[str, Any]) -> tuple[Task, dict[str, str]]:
    """Another solver or scorer gives other scores, so the code that was run is part of the task."""
    from inspect_ai import Task
    from inspect_ai._eval.task.constants import TASK_FILE_ATTR, TASK_RUN_DIR_ATTR

    file, _, task_name = spec.rpartition("@")
    modules = UserModules(Path(file))
    with _explaining(name, modules):
        module = modules.load()
    function = _task_of(name, module, task_name)
    _refuse_unknown_arguments(name, function, args)
    with _explaining(name, modules), in_folder(modules.file.parent):
        task = function(**args)
    if not isinstance(task, Task):
        raise ConfigError(f"{name}: {task_name} gives a {type(task).__name__}, and not a Task.")
    setattr(task, TASK_FILE_ATTR, modules.file.as_posix())
    setattr(task, TASK_RUN_DIR_ATTR, modules.file.parent.as_posix())
    return task, modules.code


def _task_of(name: str, module: ModuleType, task_name: str) -> Callable[..., Any]:
    """What a file has under @task of this name, or of a function of this name.

    Inspect would take a task of that name from any other file as well.
    """
    from inspect_ai._util.registry import is_registry_object, registry_info

    held = {
        attribute: registry_info(value).name
        for attribute, value in vars(module).items()
        if callable(value) and is_registry_object(value) and registry_info(value).type == "task"
    }
    attribute = next((one for one, called in held.items() if called == task_name), task_name)
    if attribute not in held:
        tasks = (
            f"its tasks are {', '.join(held.values())}"
            if held
            else "it has no function under @task"
        )
        raise ConfigError(f"{name}: there is no task {task_name!r} in {module.__file__}; {tasks}.")
    return getattr(module, attribute)


def _distribution_of(task: Task) -> str | None:
    """The distribution that an installed task comes with, and its version."""
    from inspect_ai._util.package import get_distribution_for_object
    from inspect_ai._util.registry import registry_info, registry_lookup

    found = get_distribution_for_object(registry_lookup("task", registry_info(task).name))
    return None if found is None else f"{found.name} {found.version}"


def _refuse_unusable(name: str, task: Task) -> None:
    """Raise `ConfigError` for a task that cannot give a score of the checkpoint."""
    if len(task.dataset) == 0:
        raise ConfigError(f"{name}: the task has no samples. Check its data and arguments.")
    if not task.scorer:
        raise ConfigError(f"{name}: the task has no scorer, so it gives no score. Give it one.")
    if task.model is not None:
        raise ConfigError(
            f"{name}: the task names a model of its own, {task.model}, which would answer instead "
            "of the checkpoint. Take `model` out of its Task(...)."
        )


def _refuse_unnamed_value(name: str, task: Task, score_key: str | None) -> None:
    """Raise `ConfigError` where the scorer that counts says by its metrics that it gives several
    values, and the settings name none of them. What it gives otherwise only its scores show."""
    from inspect_ai._util.registry import registry_unqualified_name
    from inspect_ai.scorer._scorer import scorer_metrics

    scorers = task.scorer or []
    if any(score_key == registry_unqualified_name(scorer) for scorer in scorers):
        return
    metrics = scorer_metrics(scorers[0])
    keys = list(metrics) if isinstance(metrics, dict) else []
    if not keys or any("*" in key for key in keys) or score_key in keys:
        return
    said = "several values and none is named" if score_key is None else f"no value {score_key!r}"
    raise ConfigError(
        f"{name}: its scorer gives {said}; it gives {', '.join(keys)}. Say which one counts: "
        f"evaluation.score_key = {{{json.dumps(name)}: ...}}."
    )


def _refuse_samples(name: str, task: Task, cluster_key: str | None) -> None:
    """Raise `ConfigError` for samples without the cluster that is named, or with one id."""
    keys = {key for sample in task.dataset for key in sample.metadata or {}}
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


def without_questions(task: InspectTask) -> InspectTask:
    """The task with its first sample only, and an empty phrase in the place of the question."""
    from inspect_ai.dataset import MemoryDataset

    tried = copy.copy(task.task)
    sample = task.task.dataset[0].model_copy(update={"input": "This is a rehearsal."})
    tried.dataset = MemoryDataset([sample], name="rehearsal")
    return replace(task, task=tried)


@contextlib.contextmanager
def _explaining(name: str, modules: UserModules | None = None) -> Iterator[None]:
    """Name the task that cannot be loaded, whatever its code raised."""
    try:
        yield
    except SystemExit as error:
        raise _not_loaded(name, error, modules) from error
    except Exception as error:  # a task is anybody's code, and may raise anything
        raise _not_loaded(name, error, modules) from error


def _not_loaded(name: str, error: BaseException, modules: UserModules | None) -> ConfigError:
    said = _first_line(error) if modules is None else modules.in_users_words(_first_line(error))
    return ConfigError(
        f"{name}: the Inspect task cannot be loaded: {type(error).__name__}: {said}. "
        "Check its name, its arguments in evaluation.task_args, and that its data can be read "
        "(benchmarks of inspect_evals download theirs from the hub the first time)."
    )


def _refuse_unknown_arguments(name: str, function: Any, args: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an argument that the task does not take; Inspect would only warn."""
    parameters = inspect.signature(function).parameters.values()
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
    return first_line_of(str(getattr(error, "message", None) or error))


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
        tree = parsed(textwrap.dedent(inspect.getsource(inspect.unwrap(scorer))))
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


def last_user_text(messages: Any) -> str:
    if isinstance(messages, str):
        return messages
    texts = [message.text for message in messages if message.role == "user"]
    return texts[-1] if texts else ""


def first_line_of(text: str) -> str:
    """The first line of what somebody's code or a model said, as a message holds it."""
    return one_line(text.strip().partition("\n")[0], 200) or "no details"
