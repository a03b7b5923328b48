"""Files that survive a kill, a power cut and a full disk.

A whole file is written beside its place and renamed into it, so a reader meets the old one or the
new one. A line is appended whole or not at all: what a full disk cut short is taken back at once,
what a power cut tore is dropped when the file is next opened to be gone on with.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import stored_json
from errors import RunStoreError, StorageError

T = TypeVar("T")

# What a disk that refuses gives as the reason, also to libraries that only pass it on.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
SYNC_EVERY_S = 1.0  # a journal's newest lines may be lost with the power, never with the process


def write_whole(target: Path, parts: Iterable[str]) -> None:
    """Write a text file durably, all of it or nothing. Raises `StorageError`."""
    temporary = target.with_name(target.name + ".tmp")
    try:
        _make_folder(target.parent)
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            sync_folder(target.parent)
        except OSError:
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
        _make_folder(path.parent)
        is_new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size_before = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, line.encode() + b"\n")
                if is_synced:
                    os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size_before)
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


class Journal:
    """What a measurement has finished, one record at a time, until its result is recorded.

    It is of one `subject`, the weights that are measured: a journal that an attempt on others left
    is begun afresh. Every record says what it cost, so that nothing is asked or counted twice.
    """

    def __init__(self, path: Path, subject: str) -> None:
        self.path = path
        self._head = json.dumps({"subject": subject})
        self._records: dict[str, dict[str, Any]] = {}
        self._synced_at = time.monotonic()
        lines = read_lines(path, repair=True).complete
        self._has_head = bool(lines) and lines[0] == self._head.encode()
        if not self._has_head:
            self.discard()
            return
        size = len(lines[0]) + 1
        for line in lines[1:]:
            record = _record(line)
            if record is None:  # a hole that a power cut left; what follows cannot be trusted
                os.truncate(path, size)  # and what is added now must not stand behind it
                break
            self._records[record["key"]] = record
            size += len(line) + 1

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str, kind: type[T]) -> T | None:
        """A finished record. Raises `RunStoreError` for one that is not of this kind."""
        record = self._records.get(key)
        try:
            return None if record is None else stored_json.record_of(kind, record["fields"])
        except ValueError as error:
            raise RunStoreError(
                f"{self.path}: what it holds of {key!r} cannot be read: {error}. Remove the file; "
                "what it holds is measured again."
            ) from None

    def add(
        self,
        key: str,
        fields: Mapping[str, Any],
        *,
        num_prompt_tokens: int,
        num_sampled_tokens: int = 0,
    ) -> None:
        """Keep a finished record. Raises `StorageError`."""
        record = {
            "key": key,
            "num_prompt_tokens": num_prompt_tokens,
            "num_sampled_tokens": num_sampled_tokens,
            "fields": dict(fields),
        }
        if not self._has_head:
            append_line(self.path, self._head)
            self._has_head = True
        now = time.monotonic()
        is_synced = now - self._synced_at >= SYNC_EVERY_S
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        append_line(self.path, line, is_synced=is_synced)
        self._synced_at = now if is_synced else self._synced_at
        self._records[key] = record

    def discard(self) -> None:
        """Remove it, once the result is recorded that holds its records."""
        self.path.unlink(missing_ok=True)
        self._records.clear()
        self._has_head = False


def num_waiting_tokens(path: Path) -> tuple[int, int]:
    """Prompt and sampled tokens of the records that wait in a journal for their result."""
    records = [_record(line) for line in read_lines(path, repair=False).complete[1:]]
    kept = [record for record in records if record is not None]
    return (
        sum(record["num_prompt_tokens"] for record in kept),
        sum(record["num_sampled_tokens"] for record in kept),
    )


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = stored_json.parse_object(line)
        is_whole = (
            isinstance(record["key"], str)
            and isinstance(record["num_prompt_tokens"], int)
            and isinstance(record["num_sampled_tokens"], int)
            and isinstance(record["fields"], dict)
        )
    except (ValueError, KeyError):
        return None
    return record if is_whole else None
