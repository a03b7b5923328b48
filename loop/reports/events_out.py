"""Standard error for programs: JSON lines, one object each, while a run goes on (`--json`).

An event of the ledger comes as it was appended. What would have been prose is a message, also what
a library prints: nothing on this stream is anything but an object and a newline.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO


class JsonLines(io.TextIOBase):
    """A stream on which every line that is written becomes a message."""

    def __init__(self, stream: TextIO, redacted: Callable[[str], str]) -> None:
        self._stream, self._redacted = stream, redacted
        self._begun = ""  # a line that is not ended yet
        self._lock = threading.RLock()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "ascii"  # as JSON is written here, so that any reader can read it

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

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
            self._stream.write(f"{line}\n")
            self._stream.flush()

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
    stream = JsonLines(before, redacted)
    sys.stderr = stream
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):  # nobody may read it any more
            stream.end()
        sys.stderr = before
