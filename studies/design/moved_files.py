"""Configs of the loop whose files are named from another folder: what they name moves along."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from studies.design.nesting import flat, put
from studies.design.paths import is_there

FILE_KEYS = ("train_file", "val_file", "mining.pool_file", "evalops_budget_file")
MODEL_KEYS = ("base_model", "evaluation.grader_model")
FILE_TASKS = ("qa:", "pref:", "nll:")  # whose names go on with a file's
NAMED_BY_TASK = ("every", "layers", "limit", "score_key", "cluster_key")


def moved_files(
    config: dict[str, Any], start: Path, to: Path, has_own_tasks: bool
) -> dict[str, Any]:
    """The same config with the files that lie below `start` named from the folder `to`; those of
    `eval_tasks` only where they are its own."""
    made = copy.deepcopy(config)
    held = flat(made)
    for key in (*FILE_KEYS, *MODEL_KEYS):
        if held.get(key) is not None:
            put(made, key, moved_name(held[key], start, to))
    _rename_prices(made, {held[key]: flat(made)[key] for key in MODEL_KEYS if _is_named(held, key)})
    if isinstance(made.get("start_from"), str):
        run_dir, at, which = made["start_from"].partition("@")
        made["start_from"] = f"{moved_name(run_dir, start, to)}{at}{which}"
    names: dict[str, Any] = {}
    for group, key in _lists_of_tasks(made, has_own_tasks):
        new = {one: _moved_task(one, start, to) for one in group[key] if isinstance(one, str)}
        group[key] = [new.get(one, one) if isinstance(one, str) else one for one in group[key]]
        names |= new
    if isinstance(config.get("val_file"), str):  # a task as well
        names[f"nll:{config['val_file']}"] = f"nll:{made['val_file']}"
    rename_tasks(made, names)
    return made


def _is_named(held: Mapping[str, Any], key: str) -> bool:
    return isinstance(held.get(key), str)


def _rename_prices(config: dict[str, Any], names: Mapping[str, str]) -> None:
    """Have the prices of a budget name the models anew."""
    found: Any = config
    for key in ("budget", "prices"):
        found = found.get(key) if isinstance(found, dict) else None
    table = found.get("usd_per_million_tokens") if isinstance(found, dict) else None
    if isinstance(table, dict):
        found["usd_per_million_tokens"] = {
            names.get(name, name): row for name, row in table.items()
        }


def _lists_of_tasks(
    config: dict[str, Any], has_own_tasks: bool
) -> Iterator[tuple[dict[str, Any], str]]:
    """The groups and keys that hold names of tasks."""
    evaluation = config.get("evaluation")
    groups = [(config, "eval_tasks")] if has_own_tasks else []
    groups += [(evaluation, "test_tasks")] if isinstance(evaluation, dict) else []
    return ((group, key) for group, key in groups if isinstance(group.get(key), list))


def rename_tasks(config: dict[str, Any], names: Mapping[str, str]) -> None:
    """Have the maps of a config that are keyed by tasks name them anew."""
    evaluation, gate = config.get("evaluation"), config.get("gate")
    for group, key in [
        *((evaluation, key) for key in (*NAMED_BY_TASK, "task_args")),
        (gate, "guards"),
    ]:
        if isinstance(group, dict) and isinstance(group.get(key), dict):
            group[key] = {names.get(name, name): value for name, value in group[key].items()}


def task_file(name: str) -> str | None:
    """The file that a task of the loop is read from; None where it has none of the user's."""
    if name.startswith(FILE_TASKS) and name != "nll:split":
        return name.partition(":")[2]
    return name.rpartition("@")[0] if ".py@" in name else None


def names_in(value: Any) -> list[str]:
    """The files that a setting of rows names."""
    if isinstance(value, list):
        return [name for one in value for name in names_in(one)]
    if isinstance(value, dict):
        return names_in(value.get("file"))
    return [value] if isinstance(value, str) else []


def named_from(folder: Path, path: Path) -> str:
    """A path as it is named from a folder."""
    return Path(os.path.relpath(path, folder.resolve())).as_posix()


def moved_name(value: Any, start: Path, to: Path) -> Any:
    """A name, or each of several, from another folder, where it is that of something there."""
    if isinstance(value, list):
        return [moved_name(one, start, to) for one in value]
    if isinstance(value, dict):
        return {**value, "file": moved_name(value["file"], start, to)} if "file" in value else value
    if not isinstance(value, str) or os.path.isabs(value) or "\0" in value:
        return value
    path = start / value
    return named_from(to, path) if is_there(path) else value


def _moved_task(name: str, start: Path, to: Path) -> str:
    for prefix in FILE_TASKS:
        if name.startswith(prefix):
            return prefix + moved_name(name.removeprefix(prefix), start, to)
    file, at, function = name.rpartition("@")
    return f"{moved_name(file, start, to)}@{function}" if at else name
