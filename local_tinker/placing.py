"""How folders are put in place and taken away: by one owner at a time, thread or process.

A folder cannot be renamed over another, so one that is overwritten is first moved aside, as
`.old-<name>`. A process that is killed then leaves it there, and the next owner brings it back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

LOCK_FILE = ".lock"
OLD_PREFIX = ".old-"


@contextlib.contextmanager
def owned(root: Path) -> Iterator[None]:
    """Own what lies in `root` until the block ends; all others wait, so let it be short, and never
    nest it.

    The lock is one of the kernel's, which a killed process loses. Raises `OSError` where the folder
    is not there, may not be written to, or lies on a file system without locks.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # through no link, to no pipe
    descriptor = os.open(root / LOCK_FILE, flags, 0o666)
    try:
        try:  # a lock belongs to an opening of the file, so threads exclude each other as well
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            reason = "its file system takes no locks (flock), without which two services could mix"
            raise OSError(error.errno, reason, str(root)) from error
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a fork made meanwhile has the descriptor, too
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def owned_if_possible(root: Path) -> Iterator[bool]:
    """Own a folder that is only read, and say whether it could be had.

    Where it could not, as on a read-only disk, what lies there is read as it is.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(owned(root))
        except OSError:
            is_owner = False
        else:
            is_owner = True
        yield is_owner


@contextlib.contextmanager
def settled(root: Path, target: Path) -> Iterator[None]:
    """Keep a folder that is only read from being renamed, and end first what a killed process left
    in the middle of an overwrite; as far as `root` can be owned."""
    with owned_if_possible(root) as is_owner:
        if is_owner:
            bring_back(target)
        yield


def put(folder: Path, target: Path, aside: Path) -> None:
    """Rename a folder to its place, and what was there to `aside`. For the owner alone."""
    if not target.exists():
        folder.rename(target)
        return
    old = target.with_name(OLD_PREFIX + target.name)
    target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        bring_back(target)
        raise
    old.rename(aside)


def bring_back(target: Path) -> None:
    """Undo half of an overwrite, or end it where the new folder is in place. For the owner alone,
    before anything else is done with `target`."""
    old = target.with_name(OLD_PREFIX + target.name)
    if not old.is_dir():
        return
    if target.exists():
        shutil.rmtree(old)
    else:
        old.rename(target)
