"""A terminal of the tests: a command on a real pty, and what its screen shows of the bytes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import forked

CONTROL = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")


def on_terminal(
    words: list[str], columns: int, folder: Path, **environment: str
) -> tuple[int, bytes]:
    """The exit code of a command, and what it writes to a terminal of so many columns."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "CI", "NO_COLOR")}
        resize(0, columns)
        # Not the environment of C, in which readline has set COLUMNS.
        os.execve(words[0], words, {**kept, "TERM": "xterm", **environment})
    written = read_to_its_end(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), written


def forked_on_terminal(words: list[str], columns: int, folder: Path) -> tuple[int, bytes]:
    """The same of a program of ours, in a process that begins with everything imported."""
    terminal, other_end = pty.openpty()
    resize(other_end, columns)
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "CI", "NO_COLOR")}
    with os.fdopen(other_end, "wb", buffering=0) as file:
        process = forked.Process(
            *words, env={**kept, "TERM": "xterm"}, cwd=folder, stdout=file, stderr=file
        )
    with process:
        written = read_to_its_end(terminal)
        return process.wait(60), written


class Typist:
    """Types on the terminal of a program of ours, and reads what is on it."""

    def __init__(self, terminal: int, process: forked.Process) -> None:
        self.process = process
        self.written = b""
        self._terminal, self._seen = terminal, 0

    def type(self, text: bytes) -> None:
        os.write(self._terminal, text)

    def wait_for(self, text: bytes, limit_s: float = 120) -> bytes:
        """What was written since it was last waited, up to this text."""
        end = time.monotonic() + limit_s
        while (place := self.written.find(text, self._seen)) < 0:
            ready, _, _ = select.select([self._terminal], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} was not written in {limit_s} s: {self.written!r}"
            self.written += os.read(self._terminal, 65_536)
        seen, self._seen = self._seen, place + len(text)
        return self.written[seen : self._seen]

    def interrupt_until(self, text: bytes) -> bytes:
        """Press Ctrl-C, once more where nothing comes of it: CPython does not hear one between its
        last look at a half-typed line and its wait for the next key."""
        for _ in range(3):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                return self.wait_for(text, limit_s=30)
        self.process.send_signal(signal.SIGINT)
        return self.wait_for(text)


@contextlib.contextmanager
def typing_on_terminal(words: list[str], columns: int, folder: Path) -> Iterator[Typist]:
    """A program of ours whose three streams are a terminal of so many columns."""
    terminal, other_end = pty.openpty()
    resize(other_end, columns)
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "CI", "NO_COLOR")}
    with os.fdopen(other_end, "r+b", buffering=0) as file:
        process = forked.Process(
            *words, env={**kept, "TERM": "xterm"}, cwd=folder, stdin=file, stdout=file, stderr=file
        )
        with process:
            yield Typist(terminal, process)
    os.close(terminal)


def read_to_its_end(terminal: int) -> bytes:
    written = b""
    while True:
        try:
            part = os.read(terminal, 65_536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        written += part
    os.close(terminal)
    return written


def resize(terminal: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


class Screen:
    """The rows that bytes leave on a terminal of so many columns, which does not scroll."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]
        self.num_wrapped = 0  # times that a row went on in the next one
        self.is_cursor_shown = True
        self._row = self._column = 0

    def feed(self, text: str) -> Screen:
        place = 0
        while place < len(text):
            if control := CONTROL.match(text, place):
                self._act(*control.groups())
                place = control.end()
            else:
                self._put(text[place])
                place += 1
            self.rows += [[] for _ in range(self._row + 1 - len(self.rows))]
        return self

    @property
    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self.rows]

    def _act(self, number: str, action: str) -> None:
        row = self.rows[self._row]
        if action == "K":
            self.rows[self._row] = [] if number == "2" else row[: self._column]
        elif action == "A":
            self._row = max(0, self._row - int(number or 1))
        elif number == "?25":
            self.is_cursor_shown = action == "h"
        elif action != "m":
            raise AssertionError(f"the screen does not know the control {number}{action}")

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._row += 1
        else:
            width = 2 if unicodedata.east_asian_width(character) in "WF" else 1
            if self._column + width > self.columns:
                self.num_wrapped += 1
                self._row, self._column = self._row + 1, 0
                self.rows.append([])
            row = self.rows[self._row]
            row += [" "] * (self._column - len(row))
            row[self._column : self._column + width] = [character, ""][:width]
            self._column += width
