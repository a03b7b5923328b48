"""The files that a task brings: its own, and what these import from beside them.

Python gives the first module of a name, and the loop's own come first. A task that would silently
get one of them in the place of its own is refused by name.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
# The modules of the loop, for which no file of the user's is taken.
OWN = frozenset(
    (
        "commands",
        "config_schema",
        "data_loader",
        "data_selector",
        "errors",
        "evalops_client",
        "evaluation",
        "grading",
        "hyperparam_utils",
        "ledger",
        "local_tinker",
        "loop",
        "rows",
        "scores",
        "services",
        "settings",
        "simple_eval",
        "storage",
        "trainer_with_eval",
    )
)


def code_of(file: Path) -> dict[str, str]:
    """A task's file and the modules beside it that it imports, directly or not -> their sha256.

    What is imported by other means than an import statement is not seen; the loop's own modules
    are not the user's, wherever the file lies. Raises `ConfigError` for a module of the user's that
    has the name of one of the loop's.
    """
    file = file.resolve()
    found: dict[str, str] = {}
    todo = [file]
    while todo:
        path = todo.pop()
        content = path.read_bytes()
        found[str(path)] = hashlib.sha256(content).hexdigest()
        folders = {path.parent, file.parent}
        for name in _imported(content):
            near = [one for one in _files_of(name, folders) if not _is_own(one)]
            _refuse_hidden(path, name, near)
            todo += [one for one in near if str(one) not in found]
    return found


def _is_own(path: Path) -> bool:
    """Whether a file is part of the loop."""
    if not path.is_relative_to(ROOT):
        return False
    return path.relative_to(ROOT).parts[0].removesuffix(".py") in OWN


def _refuse_hidden(file: Path, name: str, near: list[Path]) -> None:
    """Raise `ConfigError` where `file` imports a module that one of the loop's would hide.

    `near` are the files beside it that the name may mean.
    """
    top = name.partition(".")[0]
    theirs = str(near[0]) if near and any(_files_of(name, {ROOT})) else None
    if theirs is None and top in OWN:
        others = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
        spec = PathFinder.find_spec(top, others)
        theirs = None if spec is None else spec.origin
    if theirs is not None and not _is_own(Path(theirs).resolve()):
        raise ConfigError(
            f"{file}: it imports {name!r}, and means {theirs}, but the loop has a module "
            f"{top!r} as well, which Python would give it instead. Rename the file, for example to "
            f"my_{top}.py, and import that."
        )


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
