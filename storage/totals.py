"""Totals in a small file that is written over in place, one line of one size.

What is added is there for whoever reads the file next, whatever becomes of the process: a write is
one call, and does not wait for the disk. So a power cut may take back what was added last, up to
what the system had not written by then (half a minute, as Linux comes), and never tears the line.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from storage.files import storage_error, write_whole
from storage.stored_json import parse_object

NUM_DIGITS = 18  # of each total, so that the line keeps its size
MOST = 10 ** (NUM_DIGITS - 1)  # that is taken up: nothing that is added fills the last digit
LOOKS = 100  # how often a line that another process is writing is read


class Totals:
    """Whole numbers by name, in a file that this process alone adds to, from any of its threads."""

    def __init__(self, path: Path, at_least: Mapping[str, int]) -> None:
        """Go on with the file, or begin it with these numbers. Raises `StorageError`, and
        `ValueError` where it holds something else."""
        names = tuple(at_least)
        known = read_totals(path, names)
        self._path, self._lock = path, threading.Lock()
        self._now = {name: max(at_least[name], (known or at_least)[name]) for name in names}
        line = _line(self._now)
        try:
            # What a person has written may be longer: its end would stay behind the line.
            if known is None or path.stat().st_size != len(line):
                write_whole(path, [line])
            self._descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise storage_error(path, error) from error
        weakref.finalize(self, os.close, self._descriptor)

    @property
    def now(self) -> dict[str, int]:
        with self._lock:
            return dict(self._now)

    def add(self, amounts: Mapping[str, int]) -> None:
        """Add to totals, of which a negative amount takes something back. Raises `StorageError`."""
        with self._lock:
            for name, amount in amounts.items():
                self._now[name] += amount
            try:
                os.pwrite(self._descriptor, _line(self._now).encode(), 0)
            except OSError as error:
                raise storage_error(self._path, error) from error


def read_totals(path: Path, names: Sequence[str]) -> dict[str, int] | None:
    """The totals in a file, also while another process adds to them; None where it is not there.

    Raises `ValueError` where it holds something else, and `OSError`.
    """
    line = b""
    with contextlib.suppress(FileNotFoundError):
        for _ in range(LOOKS):  # until two looks agree: one may meet a line that is half new
            before, line = line, path.read_bytes()
            if line == before:
                break
        found = parse_object(line)
        numbers = {name: found.get(name) for name in names}
        if any(type(one) is not int or not 0 <= one < MOST for one in numbers.values()):
            raise ValueError(
                f"it has to have a whole number, of at most {NUM_DIGITS - 1} digits, for each of "
                f"{', '.join(names)}"
            )
        return {name: int(number or 0) for name, number in numbers.items()}
    return None


def _line(totals: Mapping[str, int]) -> str:
    parts = (f"{json.dumps(name)}: {number:{NUM_DIGITS}d}" for name, number in totals.items())
    return f"{{{', '.join(parts)}}}\n"
