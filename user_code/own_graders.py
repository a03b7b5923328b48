"""Graders of the user's own: a function of a Python file beside the questions.

Loading a file runs it, and a grader may do anything: what it raises or returns makes one sample a
failed one, with the reason, and never ends the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import numbers
import re
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from errors import ConfigError, one_line
from user_code.modules import UserModules, coming_back

ROUNDING = 1e-6  # how far outside 0 to 1 a score may lie that was computed in float32
MAX_REWARD = 1e6  # whose differences float32 still has to a tenth
_NAME = re.compile(r"(?P<file>[^@]+\.py)@(?P<function>[^\W\d]\w*)")


class Verdict(NamedTuple):
    """A score from 0 to 1, or why there is none."""

    score: float
    problem: str | None = None


class OwnGrader(NamedTuple):
    """`file.py@function`, loaded; what gives rewards may give any finite number."""

    name: str
    function: Callable[[str, list[str]], Any]
    modules: UserModules
    is_reward: bool = False

    async def verdict(self, answer: str, accepted: Sequence[str]) -> Verdict:
        """What the function says of an answer; it may be a coroutine function."""
        try:
            with coming_back(), contextlib.redirect_stdout(sys.stderr):  # stdout is for results
                given = self.function(answer, list(accepted))
            if inspect.isawaitable(given):
                with coming_back():
                    given = await given
            score = float(given) if isinstance(given, numbers.Real) else math.nan
        except SystemExit as error:
            return self._no_score(f"ended with SystemExit: {error}")
        except BaseException as error:  # it is anybody's code, and may raise anything
            if may_be_of_the_run(error):
                raise
            said = self.modules.in_users_words(one_line(str(error)))
            return self._no_score(f"raised {type(error).__name__}: {said}")
        if not isinstance(given, numbers.Real):
            what = repr(one_line(given, 80)) if isinstance(given, str) else "something"
            return self._no_score(
                f"gave {what} of type {_type_name(given)}, and a {self._kind} is a number "
                f"{self._bounds}"
            )
        if self.is_reward and abs(score) <= MAX_REWARD:  # which nan is not
            return Verdict(score)
        if self.is_reward or (settled := settled_score(score)) is None:
            return self._no_score(f"gave {score!r}, and a {self._kind} is {self._bounds}")
        return Verdict(settled)

    @property
    def _kind(self) -> str:
        return "reward" if self.is_reward else "score"

    @property
    def _bounds(self) -> str:
        return (
            f"between -{MAX_REWARD:,.0f} and {MAX_REWARD:,.0f}" if self.is_reward else "from 0 to 1"
        )

    def _no_score(self, what: str) -> Verdict:
        kind = "reward" if self.is_reward else "grader"
        return Verdict(0.0, f"the {kind} {self.name} {what}")


def _type_name(value: object) -> str:
    """With its module, as numpy's bool is another type than Python's."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def may_be_of_the_run(error: BaseException) -> bool:
    """Whether what was raised in a grader may be meant for all of the run: a real Ctrl-C, or the
    cancelling of what is being asked.

    While a run is at work its event loop hears the signals, and calls back: nothing is raised where
    the code happens to be. Elsewhere a KeyboardInterrupt cannot be told from a real one.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    if isinstance(error, KeyboardInterrupt):
        return threading.current_thread() is threading.main_thread() and not all(
            getattr(signal.getsignal(number), "__module__", None) == asyncio.unix_events.__name__
            for number in (signal.SIGINT, signal.SIGTERM)
        )
    return isinstance(error, GeneratorExit)


def settled_score(number: float) -> float | None:
    """A number from 0 to 1, off by rounding at most, as a score; None for any other."""
    return min(max(0.0, number), 1.0) if -ROUNDING <= number <= 1 + ROUNDING else None


def is_own_grader(name: str) -> bool:
    """Whether a row's `grader` names a function of a file."""
    return _NAME.fullmatch(name) is not None


def grader_files(names: Iterable[str], folder: Path) -> list[Path]:
    """The files that such names mean, each once."""
    matches = (_NAME.fullmatch(name) for name in names)
    return list(dict.fromkeys(folder / match["file"] for match in matches if match is not None))


def load_own_graders(
    where: Path, names: Iterable[str]
) -> tuple[dict[str, OwnGrader], dict[str, str]]:
    """Load the graders that the rows of file `where` name, each file once, and give with them the
    Python files that made them with their sha256. Raises `ConfigError`."""
    modules_of: dict[Path, Loaded] = {}
    graders: dict[str, OwnGrader] = {}
    code: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if (match := _NAME.fullmatch(name)) is None:
            continue
        file = where.parent / match["file"]
        if file not in modules_of:
            modules_of[file] = load_file(where, name, file)
            code |= modules_of[file].modules.code
        modules, module = modules_of[file]
        function = usable(where, name, getattr(module, match["function"], None))
        graders[name] = OwnGrader(name, function, modules)
    return graders, code


class Loaded(NamedTuple):
    """A user's file, run."""

    modules: UserModules
    module: types.ModuleType


def load_file(where: Path, name: str, file: Path, kind: str = "grader") -> Loaded:
    """Run the file of the `FILE.py@FUNCTION` that is named in `where`. Raises `ConfigError`."""
    modules = UserModules(file)
    with _explaining(where, name, modules, kind):
        return Loaded(modules, modules.load())


@contextlib.contextmanager
def _explaining(where: Path, name: str, modules: UserModules, kind: str) -> Iterator[None]:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        raise _not_loaded(where, f"{kind} {name}", modules, error) from error
    except Exception as error:  # the file is anybody's code, and may raise anything
        raise _not_loaded(where, f"{kind} {name}", modules, error) from error


def _not_loaded(where: Path, name: str, modules: UserModules, error: BaseException) -> ConfigError:
    said = f"{type(error).__name__}: {modules.in_users_words(one_line(str(error)))}"
    return ConfigError(
        f"{where}: the {name} cannot be loaded from {modules.file}: {said}. "
        f"Its place is relative to {where.name}; correct it."
    )


def usable(
    where: Path, name: str, function: Any, kind: str = "grader"
) -> Callable[[str, list[str]], Any]:
    """The function, where it can be called as a grader is. Raises `ConfigError`."""
    if not callable(function):
        raise ConfigError(f"{where}: the {kind} {name} is no function of that file. Correct it.")
    called = {"grader": "grade"}.get(kind, kind)
    try:
        inspect.signature(function).bind("", [])
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: the {kind} {name} does not take an answer and a list of the accepted ones "
            f"({error}). Give it these two parameters: def {called}(answer, targets)."
        ) from None
    return function
