"""What a measurement has finished, kept until its result is recorded.

A journal is of one subject, the weights that are measured. Its lines reach the disk at least once a
second: the newest may be lost with the power, never with the process.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from errors import RunStoreError
from storage.files import append_line, read_lines
from storage.stored_json import parse_object, record_of

T = TypeVar("T")

SYNC_EVERY_S = 1.0  # a journal's newest lines may be lost with the power, never with the process


class _Kept(NamedTuple):
    """Where a record stands in the file, in bytes, and the tokens that it took."""

    start: int
    size: int
    num_prompt_tokens: int
    num_sampled_tokens: int


class Journal:
    """What a measurement has finished, one record at a time, until its result is recorded.

    It is of one `subject`, the weights that are measured: a journal that an attempt on others left
    is begun afresh. Every record says what it cost, so that nothing is asked or counted twice.
    """

    def __init__(self, path: Path, subject: str) -> None:
        self.path = path
        self._head = json.dumps({"subject": subject})
        self._kept: dict[str, _Kept] = {}
        self._size = 0  # of the file, in bytes
        self._synced_at = time.monotonic()
        lines = read_lines(path, repair=True).complete
        self._has_head = bool(lines) and lines[0] == self._head.encode()
        if not self._has_head:
            self.discard()
            return
        self._size = len(lines[0]) + 1
        for line in lines[1:]:
            record = _record(line)
            if record is None:  # a hole that a power cut left; what follows cannot be trusted
                os.truncate(path, self._size)  # and what is added now must not stand behind it
                break
            self._keep(record, len(line) + 1)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_tokens(self) -> tuple[int, int]:
        """Prompt and sampled tokens that its records took."""
        kept = self._kept.values()
        return sum(one.num_prompt_tokens for one in kept), sum(
            one.num_sampled_tokens for one in kept
        )

    def get(self, key: str, kind: type[T]) -> T | None:
        """A finished record. Raises `RunStoreError` for one that is not of this kind."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        try:
            with open(self.path, "rb") as file:
                file.seek(kept.start)
                return record_of(kind, parse_object(file.read(kept.size))["fields"])
        except (OSError, KeyError, ValueError) as error:
            raise self.unreadable(key, error) from None

    def unreadable(self, key: str, error: Exception) -> RunStoreError:
        """What to say of a record that is not what it should be."""
        return RunStoreError(
            f"{self.path}: what it holds of {key!r} cannot be read: {error}. Remove the file; what "
            "it holds is measured again."
        )

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
            self._has_head, self._size = True, len(self._head.encode()) + 1
        now = time.monotonic()
        is_synced = now - self._synced_at >= SYNC_EVERY_S
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        append_line(self.path, line, is_synced=is_synced)
        self._synced_at = now if is_synced else self._synced_at
        self._keep(record, len(line.encode()) + 1)

    def _keep(self, record: Mapping[str, Any], size: int) -> None:
        """Remember where a record stands, and what it took."""
        tokens = record["num_prompt_tokens"], record["num_sampled_tokens"]
        self._kept[record["key"]] = _Kept(self._size, size, *tokens)
        self._size += size

    def discard(self) -> None:
        """Remove it, once the result is recorded that holds its records."""
        self.path.unlink(missing_ok=True)
        self._kept.clear()
        self._has_head, self._size = False, 0


def num_waiting_tokens(path: Path, told: Collection[str] = ()) -> tuple[int, int]:
    """Prompt and sampled tokens of the records that wait in a journal for their result, but for
    those of which it is `told` already: their keys begin with one of these names and a slash."""
    beginnings = tuple(f"{name}/" for name in told)
    records = [_record(line) for line in read_lines(path, repair=False).complete[1:]]
    kept = [one for one in records if one is not None and not one["key"].startswith(beginnings)]
    return _tokens_of(kept)


def _tokens_of(records: Collection[dict[str, Any]]) -> tuple[int, int]:
    return (
        sum(record["num_prompt_tokens"] for record in records),
        sum(record["num_sampled_tokens"] for record in records),
    )


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_object(line)
        is_whole = (
            isinstance(record["key"], str)
            and isinstance(record["num_prompt_tokens"], int)
            and isinstance(record["num_sampled_tokens"], int)
            and isinstance(record["fields"], dict)
        )
    except (ValueError, KeyError):
        return None
    return record if is_whole else None
