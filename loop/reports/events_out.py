"""Standard error for programs: JSON lines, one object each, while a run goes on (`--json`).

An event of the ledger comes as it was appended. What would have been prose is a message, also what
a library prints, be it written in C, and a program that is started: nothing on this stream is
anything but an object and a newline.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

LAST_WORDS_S = 1.0  # how long is waited for what a program that still runs may have written


class JsonLines(io.TextIOBase):
    """A stream on which every line that is written becomes a message."""

    def __init__(
        self, target: TextIO, redacted: Callable[[str], str], number: int | None = None
    ) -> None:
        self.target, self._redacted, self._number = target, redacted, number
        self._begun = ""  # a line that is not ended yet
        self._lock = threading.RLock()

    def beside(self) -> JsonLines:
        """Another that writes to the same place, with half lines of its own."""
        other = JsonLines(self.target, self._redacted, self._number)
        other._lock = self._lock
        return other

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "ascii"  # as JSON is written here, so that any reader can read it

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """What a program that is started may write to: becomes messages as well."""
        return self.target.fileno() if self._number is None else self._number

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
            for line in lines:
                # What redraws a line ends it with a carriage return, and only its last state tells.
                if shown := line.rstrip("\r").rpartition("\r")[2].rstrip():
                    self.event({"type": "message", "text": shown})
        return len(text)

    def event(self, event: Mapping[str, Any]) -> None:
        """Write an object, at once and without the keys."""
        line = json.dumps(_without_keys(dict(event), self._redacted))
        with self._lock:
            self.target.write(f"{line}\n")
            self.target.flush()

    def end(self) -> None:
        """Write out a line that nobody has ended."""
        if self._begun:
            self.write("\n")


def _without_keys(value: Any, redacted: Callable[[str], str]) -> Any:
    """The value with each text in it redacted; what is no JSON number is null, as JSON has none."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {redacted(key): _without_keys(one, redacted) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_keys(one, redacted) for one in value]
    is_finite = not isinstance(value, float) or value - value == 0
    return value if is_finite else None


def event_stream() -> JsonLines | None:
    """Standard error where it is for programs."""
    return sys.stderr if isinstance(sys.stderr, JsonLines) else None


@contextlib.contextmanager
def for_programs(is_asked: bool, redacted: Callable[[str], str]) -> Iterator[None]:
    """Make standard error JSON lines, where that is asked for, as long as a command works."""
    before = sys.stderr
    if not is_asked:
        yield
        return
    with _led_here(before, redacted) as stream:
        sys.stderr = stream
        try:
            yield
        finally:
            sys.stderr = before
    with contextlib.suppress(OSError, ValueError):  # nobody may read it any more
        stream.end()


@contextlib.contextmanager
def _led_here(before: TextIO, redacted: Callable[[str], str]) -> Iterator[JsonLines]:
    """The stream for programs. What is written to the number of standard error, by a library in C
    or by a program that is started, comes to it through a pipe; a stream of a test's that has no
    number has nothing below it."""
    try:
        number = before.fileno()
    except (OSError, ValueError):
        yield JsonLines(before, redacted)
        return
    reading, writing = os.pipe()
    # As it was when the command began, whatever becomes of the number.
    target = os.fdopen(os.dup(number), "w", encoding="ascii")
    stream = JsonLines(target, redacted, number)
    weakref.finalize(stream, target.close)  # whoever still holds the stream may write to it
    os.dup2(writing, number)
    os.close(writing)
    thread = threading.Thread(target=_tell_all, args=(reading, stream.beside()), daemon=True)
    thread.start()
    try:
        yield stream
    finally:
        os.dup2(stream.target.fileno(), number)  # nobody writes to the pipe now, so its reader ends
        thread.join(LAST_WORDS_S)


def _tell_all(reading: int, lines: JsonLines) -> None:
    """Make messages of what comes out of a pipe, to its end. Whoever writes to it must never wait,
    so it is read on where nobody reads the messages any more."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while part := pipe.read(65_536):
            with contextlib.suppress(OSError, ValueError):
                lines.write(decoder.decode(part))
    with contextlib.suppress(OSError, ValueError):
        lines.end()
