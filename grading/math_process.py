"""The process that works expressions out: started at the first question, and again after a failure.

It has nothing of this process: no code of the user's, no environment, no open file but two pipes.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

from errors import EvalError, one_line
from grading.arithmetic import whole_number

SECONDS = 5.0  # of one question
MEGABYTES = 512
SECONDS_TO_START = 120.0  # on a machine that has much else to do
SECONDS_OF_GRACE = 1.0  # it ends itself, and is ended here where it does not

_WORKER = Path(__file__).with_name("math_worker.py")


class NotJudged(EvalError):
    """Whether an answer is right could not be found out."""


class _Process:
    """One question at a time, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0  # a fork of this process has to start its own

    def ask(self, *question: str) -> Any:
        """What the worker says. Raises `NotJudged`."""
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(question) + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                raise self._failed(process, "its process ended before") from None
            reply = _line(process, SECONDS + SECONDS_OF_GRACE)
            if not reply:
                raise self._failed(process, _why_ended(process, is_late=reply is None))
            said = json.loads(reply)
            if isinstance(said, dict):
                raise self._failed(process, said["problem"])
            return said

    def end(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = None

    def running(self) -> int | None:
        """The id of the process, where one was started."""
        return None if self._process is None else self._process.pid

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._owner == os.getpid():
            return self._process
        command = [sys.executable, "-s", "-P", "-W", "ignore", str(_WORKER)]
        process = subprocess.Popen(
            [*command, str(SECONDS), str(MEGABYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},  # SymPy's order is that of hashes
            encoding="utf-8",
        )
        self._process, self._owner = process, os.getpid()
        if _line(process, SECONDS_TO_START) != "ready\n":
            raise self._failed(process, "math-verify does not start")
        atexit.unregister(self.end)
        atexit.register(self.end)
        return process

    def _failed(self, process: subprocess.Popen[str], why: str) -> NotJudged:
        self._process = None
        process.kill()
        _, errors = process.communicate()
        last = one_line((errors or "").strip().rpartition("\n")[2], 200)
        return NotJudged(
            f"The grader numeric could not compare expressions: {why}{f' ({last})' if last else ''}"
        )


def _why_ended(process: subprocess.Popen[str], *, is_late: bool) -> str:
    if not is_late:
        process.wait(SECONDS_OF_GRACE)
    if is_late or process.returncode == -signal.SIGALRM:
        return f"no end within {SECONDS:.0f} s"
    return f"its process ended with {process.returncode}"


def _line(process: subprocess.Popen[str], seconds: float) -> str | None:
    """The next line, empty at the end of output; None where none comes in time."""
    assert process.stdout is not None
    # One line is asked for at a time, so that none can wait in the reader's buffer.
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if ready else None


PROCESS = _Process()


def is_expression(latex: str) -> bool:
    """Whether an expression can be read. Raises `NotJudged`, as all of these do."""
    return PROCESS.ask("is_one", latex) is True


def value_of(latex: str) -> Fraction | None:
    """The value of an expression without variables; None for all others."""
    value = PROCESS.ask("value", latex)
    if value is None:
        return None
    above, _, below = value.partition("/")
    if not below:
        return Fraction(value)
    # Python's own `int` refuses long digits.
    size = Fraction(whole_number(above.lstrip("-")), whole_number(below))
    return -size if above.startswith("-") else size


def is_same_expression(gold: str, other: str) -> bool:
    return PROCESS.ask("same", gold, other) is True
