"""A user's file loaded with modules of its own.

Python keeps one module of a name for the whole process. Here each file has a package of a name
that nothing else has, and what it imports of the user's is loaded into that package, whatever it is
called and whenever it is imported: while the file is loaded, or in a function that runs later. Each
module's `__builtins__` holds the `__import__` that does so, since that is where an import statement
looks for it.
"""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import importlib
import importlib.util
import itertools
import os
import sys
import types
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any, TypeVar

from user_code.finding import (
    code_of,
    imports_relatively,
    is_installed,
    is_users_file,
    is_users_folder,
    package_root,
    spec_of,
)

T = TypeVar("T")

_PREFIX = "_user_code_"
_numbers = itertools.count(1)


class UserModules:
    """One file of the user's and the modules that are its own.

    `load` runs it. `code` are the Python files that made it, with their sha256: those that loading
    ran, as they were read then, and those that its import statements may bring in later.
    """

    def __init__(self, file: Path) -> None:
        self.file = file.resolve()
        self.code: dict[str, str] = {}
        self._package = f"{_PREFIX}{next(_numbers)}"
        self._top: str | None = None  # of the package that the file lies in, if it is in one
        self._own_names: dict[str, ModuleSpec | None] = {}
        self._builtins = {**vars(builtins), "__import__": self._import}
        self._importlib = _importlib_for(self._import_module)

    def load(self) -> types.ModuleType:
        """Run the file, in its own folder as Inspect does. Raises whatever it raises."""
        _packages[self._package] = self
        package = types.ModuleType(self._package)
        package.__path__ = [str(self.file.parent)]
        sys.modules[self._package] = package
        with in_folder(self.file.parent), _noting(self.code), _leaving_no_modules():
            module = self._loaded(package)
        self.code = {**code_of(self.file), **self.code}
        return module

    def _loaded(self, package: types.ModuleType) -> types.ModuleType:
        if self.file.name == "__init__.py" or imports_relatively(self.file):
            root = package_root(self.file)
            parts = self.file.relative_to(root).with_suffix("").parts
            parts = parts[:-1] if self.file.name == "__init__.py" else parts
            package.__path__, self._top = [str(root)], parts[0]
            return importlib.import_module(".".join([self._package, *parts]))
        # By its place, since its name may be one that no import statement can say.
        name = f"{self._package}.{self.file.stem}"
        loader = _Loader(name, str(self.file), self)
        spec = ModuleSpec(name, loader, origin=str(self.file))
        spec.has_location = True
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        return module

    def in_users_words(self, text: str) -> str:
        """A message without the name of the package, which the user does not know."""
        return text.replace(f"{self._package}.", "")

    # --- finding and running ----------------------------------------------------------------------

    def find(self, fullname: str, path: Sequence[str] | None) -> ModuleSpec | None:
        """The spec of a module of this package, by its whole name."""
        rest = fullname.removeprefix(f"{self._package}.")
        own = None if "." in rest or rest == self._top else self._own(rest)
        spec = PathFinder.find_spec(fullname, path) if own is None else _renamed(own, fullname)
        if spec is not None and type(spec.loader) is SourceFileLoader and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, self)
        return spec

    def run(self, code: types.CodeType, module: types.ModuleType) -> None:
        """Run a module's code with the `__import__` of this package."""
        vars(module)["__builtins__"] = self._builtins
        exec(code, vars(module))

    def _own(self, name: str) -> ModuleSpec | None:
        if name not in self._own_names:
            self._own_names[name] = spec_of(name, self.file)
        return self._own_names[name]

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        """What an import statement calls, see `__import__` in the language's reference."""
        top = name.partition(".")[0]
        if level == 0 and self._own(top) is not None:
            module = builtins.__import__(f"{self._package}.{name}", globals, locals, fromlist, 0)
            return module if fromlist else sys.modules[f"{self._package}.{top}"]
        module = builtins.__import__(name, globals, locals, fromlist, level)
        return self._importlib if module is importlib else module

    def _import_module(self, name: str, package: str | None = None) -> types.ModuleType:
        """What `importlib.import_module` is for these modules."""
        if not name.startswith(".") and self._own(name.partition(".")[0]) is not None:
            name = f"{self._package}.{name}"
        return importlib.import_module(name, package)


class _Loader(SourceFileLoader):
    """Loads a user's module from its source, never from bytecode that may be of an older one."""

    def __init__(self, fullname: str, path: str, modules: UserModules) -> None:
        super().__init__(fullname, path)
        self._modules = modules

    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        content = self.get_data(path)
        self._modules.code[str(Path(path).resolve())] = hashlib.sha256(content).hexdigest()
        return self.source_to_code(content, path)

    def exec_module(self, module: types.ModuleType) -> None:
        self._modules.run(self.get_code(module.__name__), module)


class _Finder(MetaPathFinder):
    """Finds the modules of all these packages, and no others."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        modules = _packages.get(fullname.partition(".")[0])
        return None if modules is None else modules.find(fullname, path)


_packages: dict[str, UserModules] = {}
sys.meta_path.insert(0, _Finder())


def _importlib_for(import_module: Callable[..., types.ModuleType]) -> types.ModuleType:
    """`importlib` as a user's module sees it."""
    seen = types.ModuleType("importlib")
    vars(seen).update(vars(importlib), import_module=import_module)
    vars(seen)["__getattr__"] = lambda name: getattr(importlib, name)
    return seen


def _renamed(spec: ModuleSpec, name: str) -> ModuleSpec:
    """The spec under the name that the module has in its package."""
    loader = spec.loader
    if type(loader) is SourceFileLoader:
        loader = SourceFileLoader(name, loader.path)
    is_package = spec.submodule_search_locations is not None
    renamed = ModuleSpec(name, loader, origin=spec.origin, is_package=is_package)
    renamed.has_location = spec.has_location
    if is_package:
        renamed.submodule_search_locations = list(spec.submodule_search_locations or ())
    return renamed


# --- around the loading ---------------------------------------------------------------------------


@contextmanager
def coming_back() -> Iterator[None]:
    """Be in the same folder afterwards: graders of code change it, and a run's own paths may start
    at it."""
    before = os.getcwd()
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def keeping_the_place() -> Iterator[None]:
    """Around code of the user's that several tasks run in turn: be in the same folder afterwards,
    and keep stdout, which is for results, out of what it prints."""
    with coming_back(), redirect_stdout(sys.stderr):
        yield


def waited_for(work: Coroutine[Any, Any, T]) -> T:
    """What work in an event loop of its own comes to, also where one runs: a study plans its runs
    inside of a loop, where no other one can be run."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Work in a folder, with it on the path, as Inspect loads a task's file."""
    before, path = os.getcwd(), list(sys.path)
    os.chdir(folder)
    sys.path.append(str(folder))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path


@contextmanager
def _leaving_no_modules() -> Iterator[None]:
    """Forget what was imported past the package: of other libraries' doing, of this user's files.
    The next file would get it for its own."""
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            is_known = name.startswith(_PREFIX) or is_installed(name)
            if not is_known and _is_users(sys.modules[name]):
                del sys.modules[name]


def _is_users(module: types.ModuleType) -> bool:
    """Whether a module is a file of the user's, or a folder of such without `__init__.py`."""
    file = getattr(module, "__file__", None)
    if file is not None:
        return is_users_file(file)
    return any(is_users_folder(place) for place in getattr(module, "__path__", ()))


_noted: list[dict[str, str]] = []


@contextmanager
def _noting(code: dict[str, str]) -> Iterator[None]:
    """Note each file of the user's whose code is run meanwhile, by whatever means."""
    _install_hook()
    _noted.append(code)
    try:
        yield
    finally:
        _noted.remove(code)


def _note(event: str, args: tuple[Any, ...]) -> None:
    if event != "exec" or not _noted:
        return
    code = args[0]
    if getattr(code, "co_name", "") == "<module>" and is_users_file(code.co_filename):
        path = Path(code.co_filename).resolve()
        for noted in _noted:
            if str(path) not in noted:
                noted[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()


_has_hook = False


def _install_hook() -> None:
    global _has_hook
    if not _has_hook:  # one can never be taken out again
        sys.addaudithook(_note)
        _has_hook = True
