"""A folder that is filled aside and appears whole under its name, or not at all.

It is filled as a hidden folder beside its place, `.NAME.unfinished-PID`, whose lock is held as long
as its process lives. What a killed process left is removed by the next that writes there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from errors import ConfigError, StorageError
from storage.files import REFUSALS, storage_error, sync_folder

MARK = ".unfinished-"
_LEFT = re.compile(rf"\..+{re.escape(MARK)}(\d{{1,10}})")


def refuse_occupied(key: str, target: Path) -> None:
    """Raise `ConfigError` where a folder cannot appear: one is there, or it cannot be made."""
    try:
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise ConfigError(f"{key}: {target} is there, and is no folder. Name another place.")
        for above in target.parents:
            if above.is_symlink() or above.exists():
                if not above.is_dir():
                    raise ConfigError(
                        f"{key}: {target} cannot be made, since {above} is no folder. Name another "
                        "place."
                    )
                break
        if target.is_dir() and next(target.iterdir(), None) is not None:
            raise ConfigError(
                f"{key}: {target} is not empty, and nothing is written over. Name a new folder."
            )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {target} cannot be used: {error}. Name another place.") from None
    try:
        str(target).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{key}: {target!a} is no UTF-8, and the libraries that write weights take nothing "
            "else. Name another place."
        ) from None
    if "\0" in str(target):
        raise ConfigError(f"{key}: a folder's name has no NUL character. Name another place.")
    if not target.name or target.name in (".", ".."):
        raise ConfigError(f"{key}: {target} names no new folder. Give it a name of its own.")


@contextlib.contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """A hidden folder to be filled; left without an error it is on disk and is the target.

    Raises `StorageError`. Where filling it raises, nothing is left.
    """
    parent = target.parent
    aside = parent / f".{target.name[:200]}{MARK}{os.getpid()}"
    try:
        descriptor = _begun(parent, aside, target)
        try:
            yield aside
            _publish(aside, target)
        except OSError as error:
            if error.errno in REFUSALS:
                raise _refused(target, error) from error
            raise
        finally:
            os.close(descriptor)
    finally:  # also where it is interrupted before anything is in it
        shutil.rmtree(aside, ignore_errors=True)


def _begun(parent: Path, aside: Path, target: Path) -> int:
    """Make the folder and hold its lock; returns what holds it."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_left(parent)
        shutil.rmtree(aside, ignore_errors=True)  # of an earlier process with this number
        aside.mkdir()
        descriptor = os.open(aside, os.O_RDONLY)
    except (OSError, ValueError) as error:
        raise _refused(target, error) from error
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _publish(aside: Path, target: Path) -> None:
    """Make all that the folder holds durable and as readable as itself, then its name."""
    readable = aside.stat().st_mode & 0o666  # some libraries write for their user alone
    for folder, _, files in os.walk(aside):
        for name in files:
            with open(Path(folder) / name, "rb") as file:
                os.fchmod(file.fileno(), readable)
                os.fsync(file.fileno())
        sync_folder(Path(folder))
    try:
        os.rename(aside, target)  # an empty folder gives way
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise StorageError(
                f"{target}: something else was put there meanwhile, and is kept; what was to be "
                "there was not. Name a new folder."
            ) from error
        raise _refused(target, error) from error
    sync_folder(target.parent)


def _refused(target: Path, error: Exception) -> Exception:
    return storage_error(target, error if isinstance(error, OSError) else OSError(str(error)))


def _remove_left(parent: Path) -> None:
    """Remove the unfinished folders of processes that are gone."""
    for folder in parent.iterdir():
        match = _LEFT.fullmatch(folder.name)
        if match is None or folder.is_symlink() or not folder.is_dir() or _runs(int(match[1])):
            continue
        # The number of a process is this machine's or container's own, its lock is not.
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def copy_plain(source: Path, target: Path) -> None:
    """Copy what a file holds, without its owner and times. Raises `StorageError`."""
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise storage_error(target, error) from error


def write_plain(target: Path, content: bytes) -> None:
    """Write a file of a folder that is still aside. Raises `StorageError`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as file:
            file.write(content)
    except OSError as error:
        raise storage_error(target, error) from error


@contextlib.contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """A folder for what is needed in between, and gone afterwards."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
