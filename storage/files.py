"""Files that survive a kill, a power cut and a full disk.

A whole file is written beside its place and renamed into it, so a reader meets the old one or the
new one. A line is appended whole or not at all: what a full disk cut short is taken back at once,
what a power cut tore is dropped when the file is next opened to be gone on with.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from errors import StorageError

TURN_LOOK_S = 0.1  # between two looks at whether a folder is free
# What a disk that refuses gives as the reason, also to libraries that only pass it on.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def write_whole(target: Path, parts: Iterable[str]) -> None:
    """Write a text file durably, all of it or nothing. Raises `StorageError`."""
    with _replacing(target) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(parts)


def write_bytes_whole(target: Path, content: bytes) -> None:
    """Write a file durably, all of it or nothing. Raises `StorageError`."""
    with _replacing(target) as temporary:
        temporary.write_bytes(content)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file durably, all of it or nothing. Raises `StorageError`."""
    with _replacing(target) as temporary:
        shutil.copyfile(source, temporary)


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A file to be written, which takes the place of another once it is on disk."""
    temporary = target.with_name(target.name + ".tmp")
    try:
        _make_folder(target.parent)
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
            sync_folder(target.parent)
        except (OSError, TypeError, ValueError):  # or what is written cannot be made to its end
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise storage_error(target, error) from error


def append_line(path: Path, line: str, *, is_synced: bool = True) -> None:
    """Append one line, all of it or nothing, on disk before returning unless told otherwise.

    Raises `StorageError`.
    """
    try:
        is_new = False
        try:  # as for all lines but the first
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            _make_folder(path.parent)
            is_new = True
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            before = os.fstat(descriptor)
            try:
                _write_all(descriptor, line.encode() + b"\n")
                if is_synced:
                    os.fsync(descriptor)
            except OSError:
                if stat.S_ISREG(before.st_mode):  # a pipe or a device has nothing to take back
                    os.ftruncate(descriptor, before.st_size)
                raise
        finally:
            os.close(descriptor)
        if is_new and is_synced:
            sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error


def _make_folder(folder: Path) -> None:
    """Make a folder that is not there, and its name durable: what lies in it is lost without."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)


def _write_all(descriptor: int, content: bytes) -> None:
    while content:  # a disk that fills up takes a part and refuses the rest
        content = content[os.write(descriptor, content) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; renaming a file alone does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def in_turn(folder: Path, limit_s: float) -> Iterator[None]:
    """Do something in a folder while no other process does so. One that takes longer than `limit_s`
    may hang, and is waited for no longer."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        give_up_at = time.monotonic() + limit_s
        while time.monotonic() < give_up_at:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(TURN_LOOK_S)
        yield
    finally:
        os.close(descriptor)


def storage_error(path: Path, error: OSError) -> StorageError:
    """What a disk that refuses is told to the user as."""
    room = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            room = f", {shutil.disk_usage(path.parent).free / 2**20:.0f} MiB are free there"
    return StorageError(
        f"{path}: the disk refused to write it: {error.strerror or error}{room}. Make room, or let "
        "this user write there; what was recorded before is whole."
    )


def open_plain(path: Path) -> BufferedReader | None:
    """Open a file that is one, and neither a link nor a pipe; None for anything else."""
    try:
        # Without waiting, which a pipe would do.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")


class Lines(NamedTuple):
    """The complete lines of a file, and how many bytes of a torn one came after them."""

    complete: list[bytes]
    num_torn_bytes: int


def read_lines(path: Path, *, repair: bool) -> Lines:
    """Read a file of lines; with `repair` a torn last one is cut off the file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Lines([], 0)
    complete, newline, torn = content.rpartition(b"\n")
    if torn and repair:
        os.truncate(path, len(complete) + len(newline))
    return Lines(complete.split(b"\n") if newline else [], len(torn))


def cut_to(path: Path, size: int) -> None:
    """Cut what comes after so many bytes off a file, durably. Raises `StorageError`."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(path, error) from error
