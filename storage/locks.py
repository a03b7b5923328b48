"""A lock that one process holds at a time, and that its death frees."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from storage.files import storage_error

MAX_PID_CHARS = 20


class HeldError(Exception):
    """Another process has the lock; its number where that can be told."""

    def __init__(self, pid: int | None) -> None:
        super().__init__()
        self.pid = pid


@contextlib.contextmanager
def held_alone(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`, which is made where there is none, until the block ends.

    Raises `HeldError` at once where another process has it, and `StorageError` where the file
    cannot be made. No child that is started inherits it, so that it dies with this process.
    """
    try:
        # Neither through a link, whose target would be written over, nor waiting on a pipe.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise storage_error(path, OSError("it is no file"))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeldError(_pid_in(descriptor)) from None
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only who has it is not
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _pid_in(descriptor: int) -> int | None:
    text = os.pread(descriptor, MAX_PID_CHARS, 0).decode("ascii", "replace").strip()
    return int(text) if text.isascii() and text.isdecimal() else None
