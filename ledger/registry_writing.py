"""What is written to a registry: by one process at a time, each event on disk before it counts.

An event is one line, so that a kill leaves all of it or nothing that is read. A line that was torn
was never told of: it is cut off by whoever writes next, and that this was done is an event, too.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from errors import RegistryError
from ledger.registry_file import (
    CHAMPION,
    PREFIX,
    Promoted,
    Registry,
    alias_problem,
    name_problem,
)
from ledger.run_directory import now
from storage.files import append_line, cut_to, sync_folder
from storage.locks import HeldError, held_alone

OWN_TYPES = ("promoted", "alias", "retired", "cut")  # what names mean hangs on these


class Who(NamedTuple):
    """Who changes something, and with which command."""

    by: str
    command: list[str]


def who(by: str | None, command: Sequence[str]) -> Who:
    """Who says that it is by them, or the user of the operating system."""
    return Who(as_text(by if by is not None else _user()), [as_text(word) for word in command])


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        return f"user {os.getuid()}"


def as_text(word: str) -> str:
    """A word of a command line, whose bytes may be no text, as a file can hold it."""
    return word.encode("utf-8", "backslashreplace").decode()


class RegistryWriter:
    """A registry that this process alone writes to. Every method is durable when it returns.

    Raises `RegistryError` for what cannot be, and `StorageError`; nothing is written then.
    """

    def __init__(self, registry: Registry, num_cut_bytes: int = 0) -> None:
        self.registry = registry
        self.num_cut_bytes = num_cut_bytes  # of a torn last line, which was there before

    def promote(self, entry: Promoted, aliases: Sequence[str] = ()) -> Promoted:
        """Add an entry and move aliases of its name to it, in one event."""
        refuse_name(entry.name)
        for alias in aliases:
            refuse_alias(alias)
        self._append("promoted", {"entry": asdict(entry), "aliases": list(dict.fromkeys(aliases))})
        return self.registry.entries[-1]

    def refuse(self, record: Mapping[str, Any]) -> None:
        """Record that a promotion was refused, and why."""
        self._append("refused", record)

    def move_alias(
        self, entry: Promoted, alias: str, by: Who, forced: str | None = None
    ) -> Promoted | None:
        """Let an alias of a name stand for one of its entries; returns what it stood for."""
        refuse_alias(alias)
        was = self.registry.alias_of(entry.name, alias)
        self._move(entry.name, alias, entry.version, by, forced)
        return was

    def remove_alias(
        self, name: str, alias: str, by: Who, forced: str | None = None
    ) -> Promoted | None:
        """Take an alias of a name away; returns what it stood for."""
        was = self.registry.alias_of(name, alias)
        self._move(name, alias, None, by, forced)
        return was

    def _move(
        self, name: str, alias: str, version: int | None, by: Who, forced: str | None
    ) -> None:
        was = self.registry.alias_of(name, alias)
        before = None if was is None else was.version
        moved = {"name": name, "alias": alias, "version": version, "was": before}
        self._append("alias", {**moved, "forced": forced, **by._asdict()})

    def retire(self, entry: Promoted, reason: str, by: Who) -> None:
        """Take an entry out of use; it can still be named, and is said to be retired."""
        retired = {"name": entry.name, "version": entry.version, "reason": reason}
        self._append("retired", {**retired, **by._asdict()})

    def record(self, event_type: str, fields: Mapping[str, Any]) -> None:
        """Append an event that no name hangs on."""
        if event_type in OWN_TYPES:
            raise RegistryError(f"{event_type}: this event has a method of its own.")
        self._append(event_type, fields)

    def _append(self, event_type: str, fields: Mapping[str, Any]) -> None:
        registry = self.registry
        head = {
            "seq": len(registry.events),
            "time": now(),
            "previous": registry.head,
            "type": event_type,
        }
        if taken := sorted(head.keys() & fields.keys()):
            raise RegistryError(f"{registry.path}: an event has {', '.join(taken)} of its own.")
        line, read = self._checked_line({**head, **fields})
        if _size_of(registry.path) != registry.num_whole_bytes:
            raise RegistryError(
                f"{registry.path}: it was changed by something else while it was held, so nothing "
                "was written. Look at it with registry.py verify, and give the command again."
            )
        append_line(registry.path, line)
        self.registry = read

    def _checked_line(self, event: Mapping[str, Any]) -> tuple[str, Registry]:
        """An event as a line, which is read back before it is written: none is added that the next
        reader would refuse."""
        path = self.registry.path
        try:
            line = json.dumps(event, ensure_ascii=False, allow_nan=False)
            read = self.registry.with_line(line.encode())
        except (ValueError, TypeError, RecursionError) as error:
            raise RegistryError(f"{path}: this cannot be recorded: {error}.") from None
        if read.misfit is not None:
            raise RegistryError(f"{path}: this cannot be recorded: {read.misfit}.")
        return line, read


def refuse_name(name: str) -> None:
    """Raise `RegistryError` for what can be no name."""
    problem = name_problem(name)
    if name == CHAMPION:
        problem = f"{PREFIX}{CHAMPION} is the alias that promotions move; a name is another word"
    if problem is not None:
        raise RegistryError(f"{as_text(name)!r:.100} can be no name: {problem}.")


def refuse_alias(alias: str) -> None:
    """Raise `RegistryError` for what can be no alias."""
    if (problem := alias_problem(alias)) is not None:
        raise RegistryError(f"{as_text(alias)!r:.100} can be no alias: {problem}.")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[RegistryWriter]:
    """Hold a registry alone until the block ends, be it by a kill; it is read anew and verified.

    Raises `RegistryError` at once where another process has it, and where it does not verify.
    """
    if not path.parent.is_dir():
        raise RegistryError(
            f"{path}: there is no folder {path.parent} to keep a registry in. Make it, or name "
            "another file with --registry FILE."
        )
    Registry.look(path).refuse_broken()  # before anything is left beside what is no registry
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(held_alone(lock_of(path)))
        except HeldError as error:
            number = "" if error.pid is None else f" (process {error.pid})"
            raise RegistryError(
                f"{path}: another promotion is at work{number}, or another command that writes to "
                "this registry. Wait for it, and give the command again."
            ) from None
        registry = Registry.look(path)
        registry.refuse_broken()
        yield _mended(registry)


def lock_of(path: Path) -> Path:
    """The file that is locked while a registry is written to."""
    return path.with_name(f".{path.name}.lock")


def _mended(registry: Registry) -> RegistryWriter:
    """Write to a registry whose last line is whole: what a kill has torn is cut off, and that is
    recorded."""
    path = registry.path
    if registry.is_there:
        sync_folder(path.parent)  # whoever made the file may have been killed before
    if registry.lacks_newline:
        append_line(path, "")
        registry = Registry.look(path)
    if not registry.num_torn_bytes:
        return RegistryWriter(registry)
    cut_to(path, registry.num_whole_bytes)
    writer = RegistryWriter(Registry.look(path), registry.num_torn_bytes)
    writer._append("cut", {"num_bytes": registry.num_torn_bytes})
    return writer


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
