"""The tasks that a config names, loaded: each with its path found, its layer and role settled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import simple_eval
from config_schema import LoadedConfig
from errors import ConfigError
from evaluation.held_out import HeldOutFile, load_held_out
from evaluation.inspect_tasks import InspectTask, TaskOptions, load_and_compare
from evaluation.preferences import PairFile, load_pairs
from evaluation.tasks import EvalTask
from scores.results import Role
from settings.task_names import SPLIT_TASK, is_inspect_task
from simple_eval import QuestionTask
from user_code.finding import code_of
from user_code.own_graders import is_own_grader


def load_eval_tasks(
    loaded: LoadedConfig, names: Sequence[str] | None = None
) -> tuple[EvalTask, ...]:
    """Load everything that rounds measure, or the tasks named. Raises `LoopError` children saying
    what is missing."""
    config = loaded.config
    tasks = []
    for name in config.measured_tasks if names is None else names:
        if name == SPLIT_TASK:
            continue  # its rows are those of train_file
        role: Role = "report"
        if name in config.gate.guards:
            role = "guard"
        elif name in config.scored_tasks:
            role = "score"
        every = config.evaluation.every.get(name, 1)
        key = "val_file" if name == f"nll:{config.val_file}" else "eval_tasks"
        tasks.append(EvalTask(name, config.layer_of(name), role, every, _load(loaded, key, name)))
    return tuple(tasks)


def load_test_tasks(loaded: LoadedConfig) -> tuple[EvalTask, ...]:
    """Load the sealed test; all of its tasks enter its score."""
    key = "evaluation.test_tasks"
    return tuple(
        EvalTask(name, loaded.config.layer_of(name), "score", "end", _load(loaded, key, name))
        for name in loaded.config.evaluation.test_tasks
    )


def _load(
    loaded: LoadedConfig, key: str, name: str
) -> QuestionTask | InspectTask | HeldOutFile | PairFile:
    if name == "simple_qa":
        return simple_eval.load_questions(name, simple_eval.SIMPLE_QA)
    if not is_inspect_task(name):
        kind, _, file = name.partition(":")
        path = loaded.find(key, file)
        if kind == "nll":
            return load_held_out(name, path, loaded.config.data.columns)
        if kind == "pref":
            return load_pairs(name, path, loaded.config.data.columns)
        return simple_eval.load_questions(name, path)
    spec = name
    if ".py@" in name:
        file, _, task = name.rpartition("@")
        spec = f"{loaded.find(key, file)}@{task}"
    settings = loaded.config.evaluation
    options = TaskOptions(
        args=settings.task_args.get(name, {}),
        limit=settings.limit.get(name),
        score_key=settings.score_key.get(name),
        cluster_key=settings.cluster_key.get(name),
    )
    return load_and_compare(name, spec, options)


def task_code(loaded: LoadedConfig) -> dict[str, str]:
    """The Python files that the settings name as tasks, reward or environment, or question files as
    graders, and what these import from beside them, with their sha256, by their path from the
    settings' folder; to load one is to run it. Raises `ConfigError`."""
    groups = {
        "eval_tasks": loaded.config.measured_tasks,
        "evaluation.test_tasks": loaded.config.evaluation.test_tasks,
    }
    code: dict[str, str] = {}
    for key, names in groups.items():
        for name in names:
            try:
                for file in _code_files(loaded, key, name):
                    code |= code_of(file)
            except OSError as error:
                raise ConfigError(f"{loaded.file}: {key}: {name}: {error}.") from None
    if loaded.config.rl is not None:
        giving = {"reward": loaded.config.rl.reward, "environment": loaded.config.rl.environment}
        for key, name in giving.items():
            if name is not None and is_own_grader(name):
                code |= code_of(loaded.find(f"rl.{key}", name.rpartition("@")[0]))
    return relative_code(code, loaded.directory)


def _code_files(loaded: LoadedConfig, key: str, name: str) -> list[Path]:
    """The Python files that a task names: its own, or those of its questions' graders."""
    if name.startswith("qa:"):
        files = simple_eval.grader_files_of(loaded.find(key, name.removeprefix("qa:")))
        return [file for file in files if file.is_file()]  # one that is gone is told of by name
    return [loaded.find(key, name.rpartition("@")[0])] if ".py@" in name else []


def relative_code(code: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Code by its path from the settings' folder, which a move of both leaves as it is."""
    return {os.path.relpath(path, folder): sha256 for path, sha256 in code.items()}
