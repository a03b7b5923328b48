"""`registry.jsonl`: which checkpoints were promoted, by whom, on what evidence, for good.

Append-only, a JSON object a line; each carries the hash of the one before:

    {"seq": 0, "time": "...", "previous": null, "type": "promoted", "entry": {...}, "aliases": []}
    {"seq": 1, "time": "...", "previous": "sha256 of line 0", "type": "alias", "name": ...}

What names mean is what a replay gives. This file reads; `registry_writing` writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import AfterValidator, Field

from errors import RegistryError, first_of
from ledger.events import OwnFile
from ledger.records import Stamp, WeightsPath
from ledger.registry_chain import Event, read_chain
from storage.files import open_plain
from storage.stored_json import Count, Measure, Share, record_of

REGISTRY = "registry.jsonl"
PREFIX = "registry:"
CHAMPION = "champion"  # the alias that promotions compare with and move
MAX_NAME_CHARS = 64
MAX_BYTES = 2**28  # more than any registry has; a file that is larger is another one
MAX_SHOWN = 20  # names in a message


def name_problem(name: str) -> str | None:
    """Why this can be no name; None where it can."""
    if len(name) > MAX_NAME_CHARS or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        return (
            f"a name has 1 to {MAX_NAME_CHARS} of the characters a-z, 0-9, '.', '_' and '-', and "
            "begins with a letter or a digit"
        )
    return None


def alias_problem(alias: str) -> str | None:
    """Why this can be no alias; None where it can."""
    if re.fullmatch(r"v?[0-9]+", alias):
        return "it looks like a version, which is given for good and never moves"
    return name_problem(alias)


def is_version(reference: str) -> bool:
    """Whether a name of a registry is one that never moves."""
    return re.fullmatch(f"{PREFIX}[a-z0-9._-]+@[1-9][0-9]*", reference) is not None


def _name(text: str) -> str:
    if (problem := name_problem(text)) is not None:
        raise ValueError(problem)
    return text


def _alias(text: str) -> str:
    if (problem := alias_problem(text)) is not None:
        raise ValueError(problem)
    return text


def _line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it has characters that no line has")
    return text


Name = Annotated[str, AfterValidator(_name)]
Alias = Annotated[str, AfterValidator(_alias)]
Line = Annotated[str, AfterValidator(_line)]
Version = Annotated[int, Field(ge=1, le=10**9)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Results:
    """What of an entry's `results` and `sealed_test` is looked up; more may be in them.

    `file` lies in the run directory, or in `evaluation_dir` where that is given: an evaluation
    outside the run, as seen from the registry's folder where it lies below it.
    """

    score: Share | None = None
    interval: Annotated[list[Measure], Field(min_length=2, max_length=2)] | None = None
    n: Count | None = None
    protocol_hash: str | None = None
    file: OwnFile | None = None
    file_sha256: Sha256 | None = None
    evaluation_dir: str | None = None


@dataclass(frozen=True)
class Promoted:
    """An entry that a checkpoint has for good: `registry:NAME@VERSION`."""

    name: Name
    version: Version  # 1, 2, ... of this name
    time: Stamp  # UTC, as in ledgers
    run_id: Line
    run_dir: Line  # as seen from the registry's folder where it lies below it
    round: Count
    step: Count
    sampler_path: WeightsPath
    state_path: WeightsPath
    # As `registry_weights.digests_of_weights` has it; None where a service keeps the files.
    weights_sha256: dict[str, Sha256] | None
    base_model: str
    base_sha256: dict[str, Sha256] | None  # None for a hub's name without files here
    lora: dict[str, Any]  # rank, alpha, train_attn, train_mlp, train_unembed
    renderer: str
    data_sha256: Sha256  # of the run's data_manifest.json
    results: dict[str, Any]  # `Results`, and: tasks
    sealed_test: dict[str, Any] | None  # `Results`
    promoted_by: str
    command: list[str]
    parent: str | None  # what the checkpoint was started from, a registry name where it has one
    against: dict[str, Any] | None  # the champion it was compared with, and what came of it
    forced: str | None = None  # the reason, where it was promoted all the same
    notes: list[str] = field(default_factory=list)
    weights: str | None = None  # `RunStore.weights_of(sampler_path)`: which ones lie there
    # What a promotion without a reason would have been refused for, with the numbers.
    objections: list[dict[str, Any]] = field(default_factory=list)
    # Optimizer steps that these weights have had, which `step` counts with those that the run went
    # back on; None of entries of before.
    num_steps: Count | None = None

    @property
    def reference(self) -> str:
        return f"{PREFIX}{self.key}"

    @property
    def key(self) -> str:
        """The name without what tells that it is one of a registry."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class _PromotedEvent:
    entry: Promoted
    aliases: list[Alias]


@dataclass(frozen=True)
class _AliasEvent:
    name: Name
    alias: Alias
    version: Version | None  # None: it names nothing any more


@dataclass(frozen=True)
class _RetiredEvent:
    name: Name
    version: Version
    reason: str
    by: str = ""


class Retired(NamedTuple):
    """When an entry was taken out of use, and why."""

    time: str
    reason: str
    by: str


class Names:
    """What the names mean after the events so far. Raises `ValueError` for one that cannot be."""

    def __init__(self) -> None:
        self.versions: dict[str, list[Promoted]] = {}
        self.aliases: dict[tuple[str, str], int] = {}
        self.retired: dict[tuple[str, int], Retired] = {}
        self.entries: list[Promoted] = []

    def take(self, event: Event) -> None:
        """Go on by one event, which is taken whole or not at all."""
        kind = event["type"]
        if kind == "promoted":
            self._promoted(record_of(_PromotedEvent, event))
        elif kind == "alias":
            self._alias(record_of(_AliasEvent, event))
        elif kind == "retired":
            self._retired(record_of(_RetiredEvent, event), event["time"])

    def _promoted(self, event: _PromotedEvent) -> None:
        entry = event.entry
        for results in (entry.results, entry.sealed_test or {}):
            record_of(Results, results)
        number = len(self.versions.get(entry.name, ())) + 1
        if entry.version != number:
            raise ValueError(f"version {entry.version} of {entry.name} where {number} is next")
        self.versions.setdefault(entry.name, []).append(entry)
        self.entries.append(entry)
        for alias in event.aliases:
            self.aliases[entry.name, alias] = entry.version

    def _alias(self, event: _AliasEvent) -> None:
        key = event.name, event.alias
        if event.version is None:
            if key not in self.aliases:
                raise ValueError(f"{event.name} has no alias {event.alias} that could be removed")
            del self.aliases[key]
            return
        self._refuse_unknown(event.name, event.version)
        if (event.name, event.version) in self.retired:
            raise ValueError(f"{event.name}@{event.version} is retired, and is given no alias")
        self.aliases[key] = event.version

    def _retired(self, event: _RetiredEvent, time: str) -> None:
        self._refuse_unknown(event.name, event.version)
        key = event.name, event.version
        if key in self.retired:
            raise ValueError(f"{event.name}@{event.version} is retired already")
        if aliases := self.aliases_of(*key):
            raise ValueError(f"{event.name}@{event.version} is {', '.join(aliases)} still")
        self.retired[key] = Retired(time, event.reason, event.by)

    def _refuse_unknown(self, name: str, version: int) -> None:
        if version > len(self.versions.get(name, ())):
            raise ValueError(f"there is no {name}@{version}")

    def aliases_of(self, name: str, version: int) -> list[str]:
        """What else an entry is called now."""
        found = [a for (n, a), v in self.aliases.items() if (n, v) == (name, version)]
        return sorted(found)


class Registry:
    """A registry as it was read. Where it does not verify, `problem` says why, and what is read
    ends before the line that is wrong."""

    def __init__(self, path: Path, content: bytes | None) -> None:
        self.path = path
        self._content = content or b""
        self.is_there = content is not None
        self._names = Names()
        chain = read_chain(self._content, self._names.take)
        self.events: tuple[Event, ...] = tuple(chain.events)
        self.hashes: tuple[str, ...] = tuple(chain.hashes)  # of the lines
        self.num_whole_bytes = chain.num_whole_bytes
        self.num_torn_bytes = chain.num_torn_bytes  # of a last line that was not written whole
        self.lacks_newline = chain.lacks_newline
        self.num_unread_lines = chain.num_unread_lines
        self.misfit = chain.misfit  # what is wrong with the first line that is
        self.problem = None
        if chain.misfit is not None:
            self.problem = (
                f"{path} line {len(chain.events) + 1}: it does not fit: {chain.misfit}. The file "
                "was changed by something else"
            )

    @classmethod
    def look(cls, path: Path) -> Self:
        """Read a registry as far as it verifies. Raises `RegistryError` for what is no file."""
        if not path.exists() and not path.is_symlink():
            return cls(path, None)
        file = open_plain(path)
        if file is None:
            raise RegistryError(
                f"{path}: this is no file that can be read, but a link, a folder, a pipe or "
                "somebody else's. Name the file itself with --registry FILE."
            )
        with file:
            is_registry = os.fstat(file.fileno()).st_size <= MAX_BYTES
            content = file.read() if is_registry else b""
        if not is_registry:
            raise RegistryError(
                f"{path}: it has more than {MAX_BYTES // 2**20} MiB, which no registry comes to. "
                "Name the registry with --registry FILE."
            )
        return cls(path, content)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a registry. Raises `RegistryError` where there is none, and where it does not
        verify."""
        registry = cls.look(path)
        if not registry.is_there:
            raise RegistryError(
                f"{path}: there is no registry here. The first promotion makes it: registry.py "
                "promote CHECKPOINT NAME; or name one with --registry FILE."
            )
        registry.refuse_broken()
        return registry

    def refuse_broken(self) -> None:
        """Raise `RegistryError` where it does not verify."""
        if self.problem is not None:
            raise RegistryError(
                f"{self.problem}. So what its names mean cannot be told, and nothing is written to "
                "it. Restore the file from a copy; registry.py verify says what else is wrong."
            )

    def with_line(self, line: bytes) -> Self:
        """The registry that it is with one more line."""
        return type(self)(self.path, self._content[: self.num_whole_bytes] + line + b"\n")

    @property
    def folder(self) -> Path:
        """What places in entries are seen from."""
        return self.path.absolute().parent

    @property
    def head(self) -> str | None:
        """The hash of the last line; None of an empty registry."""
        return self.hashes[-1] if self.hashes else None

    @property
    def entries(self) -> tuple[Promoted, ...]:
        """All that was ever promoted, oldest first."""
        return tuple(self._names.entries)

    @property
    def names(self) -> list[str]:
        return sorted(self._names.versions)

    def next_version(self, name: str) -> int:
        """The version that the next promotion of a name has."""
        return len(self._names.versions.get(name, ())) + 1

    def aliases(self) -> Mapping[tuple[str, str], int]:
        """The version that each alias of each name stands for now."""
        return dict(self._names.aliases)

    def aliases_of(self, entry: Promoted) -> list[str]:
        """What else an entry is called now."""
        return self._names.aliases_of(entry.name, entry.version)

    def alias_of(self, name: str, alias: str) -> Promoted | None:
        """What an alias of a name stands for now; None where there is no such alias."""
        version = self._names.aliases.get((name, alias))
        return None if version is None else self._names.versions[name][version - 1]

    def retired(self, entry: Promoted) -> Retired | None:
        """When and why an entry was retired; None of one that was not."""
        return self._names.retired.get((entry.name, entry.version))

    def is_retired(self, entry: Promoted) -> bool:
        return self.retired(entry) is not None

    def find(self, reference: str) -> Promoted:
        """The entry that `NAME@N`, `NAME@ALIAS` or `ALIAS` means, also with `registry:` before it.

        Raises `RegistryError` where it means none, or more than one.
        """
        self.refuse_broken()
        text = reference.removeprefix(PREFIX)
        name, at, which = text.partition("@")
        if not at:
            return self._of_alias(text)
        if name not in self._names.versions:
            raise self._unknown(text, f"nothing was promoted as {name!r:.80}")
        entries = self._names.versions[name]
        if re.fullmatch(r"[1-9][0-9]{0,8}", which):
            if int(which) <= len(entries):
                return entries[int(which) - 1]
            raise self._unknown(text, f"{name} has versions 1 to {len(entries)}")
        found = self.alias_of(name, which)
        if found is None:
            has = ", ".join(sorted(a for n, a in self._names.aliases if n == name)) or "none"
            raise self._unknown(
                text, f"{name} has versions 1 to {len(entries)}, and of aliases it has {has}"
            )
        return found

    def _of_alias(self, alias: str) -> Promoted:
        names = sorted(name for name, other in self._names.aliases if other == alias)
        if len(names) == 1:
            found = self.alias_of(names[0], alias)
            assert found is not None, "it was just found"
            return found
        if names:
            shown = first_of([f"{PREFIX}{name}@{alias}" for name in names], MAX_SHOWN)
            raise self._unknown(alias, f"{len(names)} names have this alias: {shown}. Name one")
        if alias in self._names.versions:
            entries = self._names.versions[alias]
            aliases = [f"{PREFIX}{alias}@{a}" for n, a in sorted(self.aliases()) if n == alias]
            words = [*aliases, *(one.reference for one in reversed(entries))]
            shown = first_of(words, MAX_SHOWN)
            raise self._unknown(
                alias, f"a name alone does not tell which of its checkpoints. Give one of {shown}"
            )
        raise self._unknown(alias, "no name has this alias")

    def _unknown(self, text: str, why: str) -> RegistryError:
        known = (
            f"Promoted in {self.path}: {first_of(self.names, MAX_SHOWN)} (registry.py list shows "
            "more)"
            if self.names
            else f"Nothing was promoted in {self.path} yet"
        )
        return RegistryError(f"{PREFIX}{text:.200}: {why}. {known}.")
