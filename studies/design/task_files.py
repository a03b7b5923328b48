"""The tasks of a Python file, read from its text: nothing is imported, nothing is run.

A task is a function under a decorator that is called `task`, or that is inspect_ai's by another
name; `@task(name="...")` gives it a second one. What a file imports or makes by other means cannot
be seen this way, and is said to be missing.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from errors import one_line
from settings.yaml_file import Place, shown
from studies.design.experiment import Study, TaskEntry, nearest
from studies.design.paths import is_file, is_folder
from user_code.finding import code_of
from user_code.parsing import parsed

MAX_FILE_BYTES = 4 * 2**20

Function = ast.FunctionDef | ast.AsyncFunctionDef


class TaskFunction(NamedTuple):
    """A function under `@task`: the names it goes by, and what may be given to it by name."""

    function: str
    registered: str
    arguments: tuple[str, ...]
    required: tuple[str, ...]
    takes_any: bool


class TaskFile(NamedTuple):
    """What a task file has: its tasks, and the functions that are none."""

    tasks: tuple[TaskFunction, ...]
    other_functions: tuple[str, ...]


class StudyTask(NamedTuple):
    """A task of a study that was found: its entry, its file, and what it is called there.

    `code` are the Python files of the user's that it may run, with their sha256.
    """

    entry: TaskEntry
    file: Path
    function: TaskFunction
    code: Mapping[str, str]
    code_sha256: str

    @property
    def args(self) -> Mapping[str, Any]:
        return self.entry.args or {}


def find_tasks(study: Study) -> list[StudyTask]:
    """The tasks that a study names. Raises `ConfigError` for a file, function or `@task` that is
    not there, and for arguments that the function does not take or still needs."""
    if not study.tasks:
        return []
    evaluation = study.experiment.evaluation
    folder = study.folder / evaluation.tasks_dir
    if not is_folder(folder):
        raise study.file.error(
            ("evaluation", "tasks_dir"),
            f"evaluation.tasks_dir {shown(evaluation.tasks_dir)}: there is no folder {folder}. "
            "Make it, with the task files in it.",
        )
    read: dict[Path, TaskFile] = {}
    found = []
    for number, entry in enumerate(study.tasks):
        place = ("evaluation", "tasks", number)
        file = folder / entry.file
        if file not in read:
            read[file] = _read(study, file, entry, (*place, "file"))
        function = _function_of(study, entry, read[file], (*place, "function"))
        _check_arguments(study, entry, function, (*place, "args"))
        code = code_of(file.resolve())
        digest = hashlib.sha256("\n".join(sorted(code.values())).encode()).hexdigest()
        found.append(StudyTask(entry, file.resolve(), function, code, digest))
    return found


def _read(study: Study, file: Path, entry: TaskEntry, place: Place) -> TaskFile:
    is_named_well = entry.file.endswith(".py") and "@" not in str(file)
    if not is_named_well or not is_file(file):
        beside = sorted(path.name for path in file.parent.glob("*.py")) if is_named_well else []
        known = f"there are {', '.join(beside[:20])}" if beside else "a task file is FILE.py"
        raise study.file.error(
            place,
            f"evaluation.tasks: {shown(entry.file)} is no task file: there is no {file}; {known}.",
        )
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"it is longer than {MAX_FILE_BYTES // 2**20} MiB")
        return tasks_in(file.read_bytes())
    except SyntaxError as error:
        raise study.file.error(
            place, f"{file} line {error.lineno}: not valid Python: {error.msg}. Mend the task file."
        ) from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise study.file.error(
            place,
            f"{file}: the task file cannot be read: {one_line(str(error), 200)}. Mend it.",
        ) from None


def tasks_in(content: bytes) -> TaskFile:
    """The tasks of a file's text. Raises `SyntaxError`, or `ValueError` for what is no text."""
    tree = parsed(content)
    names = _names_of_inspect(tree)
    functions: dict[str, TaskFunction | None] = {}
    for node in _at_top(tree.body):
        functions[node.name] = _task_of(node, names)  # of two of a name the later one counts
    tasks = tuple(one for one in functions.values() if one is not None)
    return TaskFile(tasks, tuple(name for name, one in functions.items() if one is None))


def _at_top(body: list[ast.stmt]) -> Iterator[Function]:
    """The functions that are names of the module, also under `if` and `try`."""
    for node in body:
        if isinstance(node, Function):
            yield node
        for field in ("body", "orelse", "handlers", "finalbody"):
            inner = getattr(node, field, [])
            if isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
                for one in inner:
                    yield from _at_top([one] if isinstance(one, ast.stmt) else one.body)


def _names_of_inspect(tree: ast.Module) -> set[str]:
    """What the file calls inspect_ai's `task`."""
    found = {"task"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("inspect_ai"):
            found |= {alias.asname or "task" for alias in node.names if alias.name == "task"}
    return found


def _task_of(node: Function, names: set[str]) -> TaskFunction | None:
    for decorator in node.decorator_list:
        call = decorator if isinstance(decorator, ast.Call) else None
        called = decorator if call is None else call.func
        is_task = (isinstance(called, ast.Name) and called.id in names) or (
            isinstance(called, ast.Attribute) and called.attr == "task"
        )
        if is_task:
            return _described(node, _name_given(call) or node.name)
    return None


def _name_given(call: ast.Call | None) -> str | None:
    """The text of `name=`; one that is computed is known to its file alone."""
    given = {word.arg: word.value for word in call.keywords} if call is not None else {}
    name = given.get("name")
    is_text = isinstance(name, ast.Constant) and isinstance(name.value, str)
    return str(name.value) if is_text and isinstance(name, ast.Constant) else None


def _described(node: Function, registered: str) -> TaskFunction:
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    without_default = positional[: len(positional) - len(args.defaults)]
    required = [one.arg for one in without_default]
    required += [
        one.arg
        for one, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
        if default is None
    ]
    by_name = tuple(one.arg for one in (*args.args, *args.kwonlyargs))
    return TaskFunction(node.name, registered, by_name, tuple(required), args.kwarg is not None)


def _function_of(study: Study, entry: TaskEntry, file: TaskFile, place: Place) -> TaskFunction:
    for one in file.tasks:
        if entry.function in (one.function, one.registered):
            return one
    called = [one.function for one in file.tasks]
    known = f"its tasks are {', '.join(called)}" if called else "it has no function under @task"
    if entry.function in file.other_functions:
        problem = f"{entry.function} in {shown(entry.file)} is not under @task; {known}. Put @task "
        problem += "above it, or name one of them."
    else:
        problem = f"there is no function {shown(entry.function)} in {shown(entry.file)}; {known}. "
        hint = nearest(entry.function, called) if called else "write one."
        problem += hint[0].upper() + hint[1:]
    raise study.file.error(place, f"evaluation.tasks: {problem}")


def _check_arguments(study: Study, entry: TaskEntry, function: TaskFunction, place: Place) -> None:
    called = f"{entry.function} in {shown(entry.file)}"
    for name in entry.args or {}:
        if name not in function.arguments and not function.takes_any:
            takes = ", ".join(function.arguments) or "no argument"
            raise study.file.error(
                (*place, name),
                f"evaluation.tasks: {called} takes no argument {shown(name)}; it takes {takes}. "
                "Correct the name, or take it out.",
            )
    missing = [name for name in function.required if name not in (entry.args or {})]
    if missing:
        raise study.file.error(
            place,
            f"evaluation.tasks: {called} needs the argument {missing[0]}, which has no default. "
            "Give it in args.",
        )
