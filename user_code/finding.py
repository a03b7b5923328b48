"""Which file an import in a user's module means: one of the user's, or what is installed.

Beside the file comes first, then the user's own places on the path; what lies in `site-packages`
or the standard library is installed, and is everybody's. A module of the loop is meant only where
no other of its name can be found.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

from user_code.parsing import parsed

ROOT = Path(__file__).resolve().parent.parent
# The modules of the loop: no file of the user's is taken for one of them, nor one of them for his.
OURS = frozenset(
    (
        "commands",
        "config_schema",
        "data_loader",
        "data_selector",
        "errors",
        "evaluation",
        "evalops_client",
        "export",
        "exports",
        "grading",
        "hyperparam_utils",
        "ledger",
        "local_tinker",
        "loop",
        "pages",
        "promotion",
        "registry",
        "report",
        "rows",
        "scores",
        "services",
        "settings",
        "simple_eval",
        "storage",
        "studies",
        "study",
        "trainer_with_eval",
        "user_code",
    )
)


class Imported(NamedTuple):
    """One import statement: what it names, how many packages up it starts, what it takes."""

    name: str
    level: int
    taken: tuple[str, ...]


def spec_of(name: str, file: Path) -> ModuleSpec | None:
    """The user's module that a top-level name means in `file`; None where it means another one."""
    beside = PathFinder.find_spec(name, [str(file.parent), str(package_root(file))])
    elsewhere = PathFinder.find_spec(name, _places_of_user())
    for spec in (beside, elsewhere):
        if spec is not None and spec.origin is not None and not _is_ours(Path(spec.origin)):
            return None if _is_installed_as(name, spec) else spec
    if name in OURS and (hidden := PathFinder.find_spec(name, _places_of_packages())) is not None:
        return hidden  # an installed one, in whose place Python would give the loop's
    folder = beside or elsewhere
    if folder is None or folder.origin is not None or _is_installed(name):
        return None  # a folder without code hides nothing, also where it lies first
    return folder


def code_of(file: Path) -> dict[str, str]:
    """A file of the user's and those that it may import, directly or not -> their sha256.

    Read from the import statements alone, also those inside functions; nothing is run.
    Raises `OSError`.
    """
    file = file.resolve()
    found: dict[str, str] = {}
    todo = [file]
    while todo:
        path = todo.pop()
        if str(path) in found:
            continue
        content = path.read_bytes()
        found[str(path)] = hashlib.sha256(content).hexdigest()
        for one in _imports_in(content):
            todo += [each for each in _files_of(one, path, file) if str(each) not in found]
    return found


def imports_relatively(file: Path) -> bool:
    """Whether a file's import statements start at the package that it lies in."""
    return any(one.level for one in _imports_in(file.read_bytes()))


def package_root(file: Path) -> Path:
    """The folder that holds the outermost package of a file; its own where it is in none."""
    folder = file.parent
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
    return folder


def is_users_file(path: str) -> bool:
    """Whether a file of code is the user's: neither installed nor the loop's."""
    return (
        path.endswith(".py")
        and Path(path).is_file()
        and not _is_installed_place(os.path.abspath(path))
        and not _is_ours(Path(path))
    )


def is_users_folder(path: str) -> bool:
    """Whether a folder of code is the user's: neither installed nor the loop's."""
    return not _is_installed_place(os.path.abspath(path)) and not _is_ours(Path(path))


def is_installed(name: str) -> bool:
    """Whether a module belongs to an installed distribution, wherever its files lie."""
    return name.partition(".")[0] in _distributions()


def _imports_in(content: bytes) -> Iterator[Imported]:
    try:
        nodes = list(ast.walk(parsed(content)))
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (Imported(alias.name, 0, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            taken = tuple(alias.name for alias in node.names)
            yield Imported(node.module or "", node.level, taken)


def _files_of(one: Imported, importing: Path, file: Path) -> Iterator[Path]:
    """The user's files that an import statement of `importing`, a module of `file`'s, may run."""
    parts = one.name.split(".") if one.name else []
    if one.level:
        folder = importing.parent
        for _ in range(one.level - 1):
            folder = folder.parent
        places: Sequence[str] = [str(folder)]
        yield from _init_of(folder)
    else:
        spec = spec_of(parts[0], file)
        if spec is None:
            return
        yield from _source_of(spec)
        places, parts = list(spec.submodule_search_locations or ()), parts[1:]
    for part in parts:
        spec = PathFinder.find_spec(part, places)
        if spec is None:
            return
        yield from _source_of(spec)
        places = list(spec.submodule_search_locations or ())
    for name in one.taken:
        if places and (spec := PathFinder.find_spec(name, places)) is not None:
            yield from _source_of(spec)


def _source_of(spec: ModuleSpec) -> Iterator[Path]:
    if spec.origin is not None and spec.origin.endswith(".py"):
        yield Path(spec.origin).resolve()


def _init_of(folder: Path) -> Iterator[Path]:
    if (folder / "__init__.py").is_file():
        yield (folder / "__init__.py").resolve()


def _is_ours(path: Path) -> bool:
    path = path.resolve()
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0].removesuffix(".py") in OURS


def _is_installed(name: str) -> bool:
    """Whether a name means something apart from the user's folders, which may be on the path."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return False
    if spec is None or spec.origin is not None:
        return spec is not None
    places = map(os.path.abspath, spec.submodule_search_locations or ())
    return any(map(_is_installed_place, places))


def _is_installed_as(name: str, spec: ModuleSpec) -> bool:
    """Whether what was found is a package that is installed from where it lies (`pip -e`)."""
    if not is_installed(name):
        return False
    try:
        installed = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return False
    return installed is not None and installed.origin == spec.origin


@functools.cache
def _distributions() -> frozenset[str]:
    return frozenset(packages_distributions())


def _places_of_packages() -> list[str]:
    return [entry for entry in sys.path if entry and _is_installed_place(os.path.abspath(entry))]


def _places_of_user() -> list[str]:
    """Entries of the path that hold nothing installed; an empty one is the working directory."""
    entries = (os.path.abspath(entry) for entry in sys.path)
    return [entry for entry in entries if not _is_installed_place(entry)]


@functools.cache
def _is_installed_place(path: str) -> bool:
    forms = (Path(path), Path(path).resolve())
    return any(form.is_relative_to(place) for form in forms for place in _installed_places())


@functools.cache
def _installed_places() -> tuple[Path, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    named = {sysconfig.get_path(kind) for kind in kinds} | set(site.getsitepackages())
    named.add(site.getusersitepackages())
    named |= {entry for entry in sys.path if entry.endswith((".zip", "lib-dynload"))}
    named |= {entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")}
    places = {Path(one) for one in named}
    return tuple(places | {place.resolve() for place in places})
